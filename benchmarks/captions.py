"""VELM's caption metrics compared with the complete Java pipeline of pycocoevalcap, on real captions.

    pip install 'velm[metrics]'                            # and Java, e.g. apt-get install default-jre-headless
    python benchmarks/captions.py ../shared/data/flickr8k/captions.csv
    python benchmarks/captions.py ../shared/data/multi30k/translations.csv.gz --column en

The first caption of every image that has several is evaluated against the others. Both sides receive the raw captions:
VELM tokenizes by `ptb_tokenize`, pycocoevalcap by Stanford's PTBTokenizer, and each computes its metrics from its own
tokens. Prints how many captions are tokenized differently, the metrics of both, their difference, and the seconds of
each. In the column "same words" both use the tokens of the Java tokenizer, which isolates the arithmetic.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from velm import metrics

Captions = list[list[str]]


def read(path: str, column: str = "text") -> Captions:
    """The captions of each image, by the column image_id; .gz files are decompressed."""
    found: dict[str, list[str]] = {}
    with (gzip.open if path.endswith(".gz") else open)(path, "rt", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            found.setdefault(row["image_id"], []).append(row[column])
    return list(found.values())


def java_words(captions: Captions) -> Captions:
    """Each caption as tokenized by Stanford's tokenizer, tokens joined by blanks."""
    from velm.metrics.java import require_java

    tokenizer = require_java("The comparison", "tokenizer.ptbtokenizer").PTBTokenizer()
    given = {i: [{"caption": text} for text in texts] for i, texts in enumerate(captions)}
    found: Captions = list(tokenizer.tokenize(given).values())
    return found


def theirs(captions: Captions) -> dict[str, float]:
    """BLEU, ROUGE-L and CIDEr-D by pycocoevalcap, from tokenized captions."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    right = {i: texts[1:] for i, texts in enumerate(captions)}
    given = right, {i: texts[:1] for i, texts in enumerate(captions)}
    scores = {f"bleu{n}": score for n, score in enumerate(Bleu(4).compute_score(*given, verbose=0)[0], start=1)}
    return scores | {"rouge_l": Rouge().compute_score(*given)[0], "cider": Cider().compute_score(*given)[0]}


def ours(captions: Captions, tokenize: Callable[[str], list[str]] = metrics.ptb_tokenize) -> dict[str, float]:
    """The same by VELM."""
    given = [texts[0] for texts in captions], [texts[1:] for texts in captions]
    values = metrics.caption_metrics(*given, tokenize=tokenize)
    return {name: values[f"caption/{name}"] for name in ("bleu1", "bleu2", "bleu3", "bleu4", "rouge_l", "cider")}


def compare(captions: Captions) -> dict[str, Any]:
    """The results to print."""
    captions, single = ([c for c in captions if (len(c) > 1) is several] for several in (True, False))
    start = time.perf_counter()
    mine = ours(captions) if captions else {}
    middle = time.perf_counter()
    words = java_words(captions) if captions else []
    yours = theirs(words) if captions else {}
    end = time.perf_counter()
    same = ours(words, str.split) if captions else {}
    every = zip(captions + single, words + (java_words(single) if single else []), strict=True)
    flat = [pair for texts, cuts in every for pair in zip(texts, cuts, strict=True)]
    other = [(text, cut) for text, cut in flat if metrics.ptb_tokenize(text) != cut.split()]
    return {
        "images": len(captions) + len(single),
        "captions": len(flat),
        "cut otherwise": len(other),
        "seconds": {"velm": middle - start, "pycocoevalcap": end - middle},
        "metrics": {
            name: {
                "velm": mine[name],
                "pycocoevalcap": yours[name],
                "difference": mine[name] - yours[name],
                "difference, same words": same[name] - yours[name],
            }
            for name in mine
        },
        "examples": [[text, cut, " ".join(metrics.ptb_tokenize(text))] for text, cut in other[:20]],
    }


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        description="VELM's caption metrics compared with pycocoevalcap's, on real captions."
    )
    parser.add_argument("path", help="csv with the columns image_id and text")
    parser.add_argument("--column", default="text", help="column of the captions (default text)")
    parser.add_argument(
        "--json", action="store_true", help="print everything, with the captions that are tokenized differently"
    )
    args = parser.parse_args(argv)
    found = compare(read(args.path, args.column))
    if args.json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
        return
    print(f"{found['captions']} captions of {found['images']} images; {found['cut otherwise']} tokenized differently")
    print("".join(f"{title:>24}" for title in ("", "velm", "pycocoevalcap", "difference", "same words")))
    for name, row in found["metrics"].items():
        print(f"{name:>24}" + "".join(f"{value:24.3g}" if "diff" in key else f"{value:24.6f}"
                                      for key, value in row.items()))  # fmt: skip
    print(f"{'seconds':>24}" + "".join(f"{value:24.1f}" for value in found["seconds"].values()))


if __name__ == "__main__":
    main(sys.argv[1:])
