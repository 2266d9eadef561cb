"""Translations whose source hides words that the image shows: a table with masked words, and how many are recovered.

    python benchmarks/masked_words.py table ../shared/data/multi30k/translations.csv.gz masked.csv --column en
    python benchmarks/masked_words.py recovered with/captions.jsonl without/captions.jsonl

As in Caglayan et al. 2019, Probing the Need for Visual Context in Multimodal Machine Translation (arXiv 1903.08678):

    colours   "A man in a blue shirt ."  ->  "A man in a [v] shirt ."       colour deprivation
    entities  "A man in a blue shirt ."  ->  "A [v] in a blue [v] ."        entity masking

Colours are the eleven basic terms of English (Berlin and Kay 1969). Entities are found by VELM's list of nouns of
captions (`velm.data.text.hard_negatives.NOUNS`), where the paper has the annotated phrases of Flickr30k Entities.

`table` copies the rows with such words, with a column `masked` of the words that are hidden; with both kinds, a row for
each. --originals keeps the rows as they were, too, under the same image, in every split but `test`. Image paths stay
those of the table: give its folder as `data.dataset.root`.

`recovered` reads the captions.jsonl of `velm evaluate` and prints, for the masked texts, how many of the German colours
of the reference the translation has, with the interval of 95% over a thousand draws of the texts (Efron 1979).
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from velm.data.text.hard_negatives import NOUNS
from velm.evaluation.bootstrap import RESAMPLES, intervals

MASK = "[v]"
COLOURS = ("black", "white", "red", "green", "yellow", "blue", "brown", "purple", "pink", "orange", "grey", "gray")
MASKED = {"colours": COLOURS, "entities": tuple(NOUNS)}
GERMAN = (
    "schwarz",
    "weiß",
    "rot",
    "grün",
    "gelb",
    "blau",
    "braun",
    "lila",
    "violett",
    "rosa",
    "pink",
    "orange",
    "grau",
)
"""Beginnings of German words for colours; 'pinkfarbene' and 'rosafarbene' are among them."""


def mask_words(text: str, words: Sequence[str], mask: str = MASK) -> tuple[str, list[str]]:
    """The text with each of the words replaced by `mask`, and the words replaced, in order.

    Whole words only, in any case; "t-shirt" is one word.
    """
    found: list[str] = []
    pattern = rf"(?<![\w-])(?:{'|'.join(sorted(map(re.escape, words), key=len, reverse=True))})(?![\w-])"

    def hide(match: re.Match[str]) -> str:
        found.append(match[0])
        return mask

    return re.sub(pattern, hide, text, flags=re.IGNORECASE), found


def masked_rows(
    rows: Iterable[dict[str, str]], column: str, kinds: Sequence[str], originals: bool
) -> Iterator[dict[str, str]]:
    """The rows of the masked table, each with the column `masked`: the hidden words, separated by blanks."""
    for row in rows:
        if originals and row["split"] != "test":
            yield {**row, "masked": ""}
        for kind in kinds:
            text, found = mask_words(row[column], MASKED[kind])
            if found:
                yield {**row, column: text, "masked": " ".join(found)}


def write_table(source: Path, target: Path, column: str, kinds: Sequence[str], originals: bool) -> Counter[str]:
    """Write the masked table; returns the number of rows with a mask by split.

    Raises:
        SystemExit: the table lacks the column or a split.
    """
    with _open(source) as file, open(target, "w", newline="", encoding="utf-8") as out:
        reader = csv.DictReader(file)
        columns = list(reader.fieldnames or ())
        if missing := {column, "split"} - set(columns):
            raise SystemExit(f"{source} has the columns {', '.join(columns)}, not {', '.join(sorted(missing))}.")
        writer = csv.DictWriter(out, [*columns, "masked"])
        writer.writeheader()
        counts: Counter[str] = Counter()
        for row in masked_rows(reader, column, kinds, originals):
            writer.writerow(row)
            counts[row["split"]] += bool(row["masked"])
    return counts


def colours_of(text: str) -> Counter[str]:
    """How often a German text has each of the colours."""
    words = re.findall(r"\w+", text.lower())
    return Counter(colour for word in words for colour in GERMAN if word.startswith(colour))


def read_recovered(path: Path) -> np.ndarray:
    """Of each masked text of a captions.jsonl: colours of the reference, and those of them in the caption; (n, 2)."""
    counts = []
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if MASK in row["text"]:
            wanted, written = colours_of(row["references"][0]), colours_of(row["caption"])
            counts.append((wanted.total(), (wanted & written).total()))
    return np.array(counts)


def recovered(first: np.ndarray, second: np.ndarray | None = None, *, seed: int = 0) -> tuple[float, float, float]:
    """The share of recovered colours, or that of `first` less that of `second`, and its interval of 95%."""
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(len(first), np.full(len(first), 1 / len(first)), size=RESAMPLES)

    def share(counts: np.ndarray, weights: np.ndarray) -> np.ndarray:
        total, found = (weights @ counts).T
        return np.asarray(found / total)

    once = np.ones((1, len(first)))
    value, drawn = share(first, once), share(first, draws)
    if second is not None:
        value, drawn = value - share(second, once), drawn - share(second, draws)
    return float(value[0]), *intervals({"": drawn})[""]


def _open(path: Path) -> IO[str]:
    return gzip.open(path, "rt", encoding="utf-8", newline="") if path.suffix == ".gz" else open(path, newline="")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    table = commands.add_parser("table", help="write the masked table")
    table.add_argument("source", type=Path, help="csv or csv.gz with the columns split and --column")
    table.add_argument("target", type=Path, help="csv to write")
    table.add_argument("--column", default="text", help="the column to mask (default text)")
    table.add_argument("--words", choices=MASKED, nargs="+", default=["colours"], help="default colours")
    table.add_argument("--originals", action="store_true", help="also the rows as they were, but in test")
    score = commands.add_parser("recovered", help="count the colours that translations have")
    score.add_argument("captions", type=Path, help="captions.jsonl")
    score.add_argument("other", type=Path, nargs="?", help="captions.jsonl to compare with, of the same texts")
    args = parser.parse_args(argv)
    if args.command == "table":
        counts = write_table(args.source, args.target, args.column, args.words, args.originals)
        print("masked rows: " + ", ".join(f"{split} {count:,}" for split, count in counts.items()))
        return
    counts = [read_recovered(path) for path in (args.captions, args.other) if path is not None]
    for path, each in zip((args.captions, args.other), counts, strict=False):
        print("{}: {:.3f} ({:.3f} to {:.3f}) of {} colours".format(path, *recovered(each), each[:, 0].sum()))
    if len(counts) == 2:
        print("difference: {:.3f} ({:.3f} to {:.3f})".format(*recovered(*counts)))


if __name__ == "__main__":
    main()
