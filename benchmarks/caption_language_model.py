"""Train a small Llama on captions alone, without images: a language model for `decoder: {name: llm/FOLDER}`.

    python benchmarks/caption_language_model.py --captions ../shared/data/flickr8k/captions.csv --output caption_lm

The folder holds the model and its tokenizer as transformers writes them. The last epoch's loss on the captions of the
validation split, in nats a token, is printed: the blind figure that a captioner with this decoder must be better than.
"""

from __future__ import annotations

import argparse
import csv
import math
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}


def train_tokenizer(texts: list[str], size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE with its own ids for pad, bos and eos."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(SPECIAL.values()), initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL)


def read(path: Path, split: str) -> list[str]:
    """The captions of a split."""
    with path.open(newline="", encoding="utf-8") as file:
        return [row["text"] for row in csv.DictReader(file) if row["split"] == split]


def batches(
    tokenizer: PreTrainedTokenizerFast, texts: list[str], size: int, generator: torch.Generator
) -> list[Tensor]:
    """int64 (B, T) each, bos ... eos, -1 behind them; captions of like length together, in random order."""
    ids = [[tokenizer.bos_token_id, *row, tokenizer.eos_token_id] for row in tokenizer(texts).input_ids]
    order = torch.randperm(len(ids), generator=generator).tolist()
    order.sort(key=lambda row: len(ids[row]))
    found = []
    for start in range(0, len(order), size):
        rows = [torch.tensor(ids[row]) for row in order[start : start + size]]
        found.append(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1))
    return [found[i] for i in torch.randperm(len(found), generator=generator).tolist()]


def loss_of(model: LlamaForCausalLM, rows: Tensor) -> tuple[Tensor, int]:
    """The summed cross-entropy of the next token in nats, and how many are predicted."""
    labels = rows[:, 1:]
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(rows[:, :-1].clamp(min=0)).logits
    return F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=-1, reduction="sum"), int(
        (labels >= 0).sum()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=Path, required=True, help="csv with the columns text and split")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--vocabulary", type=int, default=4000)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--dropout", type=float, default=0.1, help="of the attention's weights")
    args = parser.parse_args()
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    train, held_out = read(args.captions, "train"), read(args.captions, "val")
    tokenizer = train_tokenizer(train, args.vocabulary)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=args.width, intermediate_size=3 * args.width,
        num_hidden_layers=args.depth,
        num_attention_heads=args.width // 64, num_key_value_heads=args.width // 64, max_position_embeddings=256,
        tie_word_embeddings=True, pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, attention_dropout=args.dropout,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(train):,} captions", flush=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1, betas=(0.9, 0.98), fused=True)
    total = args.epochs * math.ceil(len(train) / 256)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=total, pct_start=0.05)
    start = time.perf_counter()
    for epoch in range(args.epochs):
        model.train()
        for rows in batches(tokenizer, train, 256, generator):
            summed, count = loss_of(model, rows)
            optimizer.zero_grad()
            (summed / count).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        model.eval()
        with torch.no_grad():
            sums = [loss_of(model, rows) for rows in batches(tokenizer, held_out, 256, generator)]
        value = sum(float(summed) for summed, _ in sums) / sum(count for _, count in sums)
        print(
            f"epoch {epoch + 1}: validation {value:.3f} nats a token, {time.perf_counter() - start:.0f} s", flush=True
        )
    model.save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)


if __name__ == "__main__":
    main()
