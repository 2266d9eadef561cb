"""Recall on 5,000 pictures and 25,000 captions: VELM's blocks beside CLIP_benchmark's one-hot definition.

    python benchmarks/retrieval.py
    python benchmarks/retrieval.py --pictures 1000 --repeats 5 --json

The other side is written anew from CLIP_benchmark's description of its zero-shot retrieval: the whole matrix of scores
and one of who belongs to whom; the k best of each row as one-hot vectors, in batches of 64 rows as it does by default,
multiplied with who belongs; a hit where any is left. Both sides get the same made embeddings of 512 numbers. Each turn
is a process of its own (A B A B ...), so that its greatest resident memory, less what it had once the embeddings were
there, is its own. Medians over the turns. CLIP_benchmark gives recall only; VELM gives ranks, median, mean and MRR too.

Expect ten minutes on a busy core; --repeats 1 takes three.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

KS = (1, 5, 10)
CAPTIONS = 5
DIM = 512
BATCH = 64

Embeddings = tuple[Tensor, Tensor, Tensor]


def made(pictures: int, seed: int = 0) -> Embeddings:
    """Embeddings of pictures, of five noisy captions each, and whose they are."""
    generator = torch.Generator().manual_seed(seed)
    image = normalize(torch.randn(pictures, DIM, generator=generator), dim=1)
    ids = torch.arange(pictures).repeat_interleave(CAPTIONS)
    text = normalize(image[ids] + torch.randn(len(ids), DIM, generator=generator) / 4, dim=1)
    return image, text, ids


def ours(image: Tensor, text: Tensor, ids: Tensor) -> dict[str, float]:
    from velm.metrics import retrieval_metrics

    return {name: value for name, value in retrieval_metrics(image, text, ids, KS).items() if "recall" in name}


def one_hot_recall(image: Tensor, text: Tensor, ids: Tensor) -> dict[str, float]:
    """The definition that CLIP_benchmark describes."""
    scores = text @ image.T
    belongs = torch.zeros_like(scores, dtype=torch.bool)
    belongs[torch.arange(len(scores)), ids] = True
    found = {}
    for direction, rows, right in (
        ("image_to_text", scores.T, belongs.T),
        ("text_to_image", scores, belongs),
    ):
        for k in KS:
            parts = zip(rows.split(BATCH), right.split(BATCH), strict=True)
            recalls = torch.cat([_one_hot_batch(part, own, k) for part, own in parts])
            found[f"{direction}/recall@{k}"] = float((recalls > 0).float().mean())
    return found


def _one_hot_batch(scores: Tensor, belongs: Tensor, k: int) -> Tensor:
    """Share of each row's own that is among its k best, float (rows,)."""
    best = one_hot(scores.topk(k, dim=1).indices, num_classes=scores.shape[1])
    return (best * belongs[:, None]).sum((1, 2)) / belongs.sum(1)


SIDES: dict[str, Callable[[Tensor, Tensor, Tensor], dict[str, float]]] = {
    "one-hot": one_hot_recall,
    "velm": ours,
}


def _turn(side: str, pictures: int, threads: int, pipe: Connection) -> None:
    torch.set_num_threads(threads)
    embeddings = made(pictures)
    SIDES[side](*made(50))  # what is imported or set up once
    before, start = _peak(), time.perf_counter()
    figures = SIDES[side](*embeddings)
    pipe.send({"seconds": time.perf_counter() - start, "mebibytes": _peak() - before, "figures": figures})


def _peak() -> float:
    """The greatest resident memory of this process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 if sys.platform != "darwin" else 1024) / 1024


def turn(side: str, pictures: int, threads: int) -> dict[str, Any]:
    """One measurement in a new process."""
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_turn, args=(side, pictures, threads, send))
    process.start()
    send.close()
    found: dict[str, Any] = receive.recv()
    process.join()
    return found


def measure(pictures: int, repeats: int, threads: int) -> dict[str, dict[str, Any]]:
    """Medians of either side, and its figures."""
    turns: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for _ in range(repeats):
        for side, found in turns.items():
            found.append(turn(side, pictures, threads))
    return {
        side: {
            "seconds": statistics.median(each["seconds"] for each in found),
            "mebibytes": statistics.median(each["mebibytes"] for each in found),
            "figures": found[0]["figures"],
        }
        for side, found in turns.items()
    }


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description="Recall in blocks beside the one-hot definition.")
    parser.add_argument("--pictures", type=int, default=5000, help="five captions each (default 5000)")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each side (default 3)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default 1)")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    found = measure(args.pictures, args.repeats, args.threads)
    if args.json:
        print(json.dumps(found, indent=1))
        return
    print(f"{args.pictures} pictures, {CAPTIONS * args.pictures} captions, {args.threads} thread(s)")
    for side, row in found.items():
        print(f"{side:>10}  {row['seconds']:8.2f} s  {row['mebibytes']:8.0f} MiB")
    for name, value in found["velm"]["figures"].items():
        print(f"{name:>24}  {found['one-hot']['figures'][name]:.6f}  {value:.6f}")


if __name__ == "__main__":
    main(sys.argv[1:])
