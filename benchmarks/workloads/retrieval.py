"""Recall on 5,000 images and 25,000 captions: VELM's blocks compared with the one-hot definition of CLIP_benchmark.

The peer is a reimplementation of the zero-shot retrieval that CLIP_benchmark describes: the complete score matrix and
a matrix of matches; the k best of each row as one-hot vectors, in its default batches of 64 rows, multiplied by the
matches; a hit if any product is non-zero. It gives recall only; VELM also gives ranks, median, mean and MRR.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from benchmarks.harness.workload import OURS, Agreement, Run, Settings, Workload

KS = (1, 5, 10)
CAPTIONS = 5
DIM = 512
IMAGES = 5000
BATCH = 64

Embeddings = tuple[Tensor, Tensor, Tensor]


def made(images: int, seed: int = 0) -> Embeddings:
    """Embeddings of images, of five noisy captions each, and the image of each caption."""
    generator = torch.Generator().manual_seed(seed)
    image = normalize(torch.randn(images, DIM, generator=generator), dim=1)
    ids = torch.arange(images).repeat_interleave(CAPTIONS)
    text = normalize(image[ids] + torch.randn(len(ids), DIM, generator=generator) / 4, dim=1)
    return image, text, ids


def ours(image: Tensor, text: Tensor, ids: Tensor) -> dict[str, float]:
    from velm.metrics import retrieval_metrics

    return {name: value for name, value in retrieval_metrics(image, text, ids, KS).items() if "recall" in name}


def one_hot_recall(image: Tensor, text: Tensor, ids: Tensor) -> dict[str, float]:
    """Recall by the definition of CLIP_benchmark."""
    scores = text @ image.T
    belongs = torch.zeros_like(scores, dtype=torch.bool)
    belongs[torch.arange(len(scores), device=scores.device), ids] = True
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
    """Fraction of each row's matches among its k best, float (rows,)."""
    best = one_hot(scores.topk(k, dim=1).indices, num_classes=scores.shape[1])
    return (best * belongs[:, None]).sum((1, 2)) / belongs.sum(1)


Side = Callable[[Tensor, Tensor, Tensor], dict[str, float]]


def system(side: Side, settings: Settings) -> Run:
    few, embeddings = (tuple(each.to(settings.device) for each in made(count)) for count in (50, IMAGES))
    side(*few)  # one-time imports and initialisation

    def step() -> int:
        side(*embeddings)
        return IMAGES * CAPTIONS

    return Run(step, warm=1, steps=1)


def prove(settings: Settings) -> list[Agreement]:
    """Compare all six metrics."""
    embeddings = made(1000)
    mine, theirs = ours(*embeddings), one_hot_recall(*embeddings)
    for name, value in mine.items():
        assert abs(value - theirs[name]) < 1e-6, (name, value, theirs[name])
    return [Agreement(f"{name} of 1,000 images", value, theirs[name]) for name, value in mine.items()]


WORKLOADS = [
    Workload(
        name="retrieval",
        title="recall at 1, 5 and 10 both ways, 5,000 images and 25,000 captions of width 512",
        unit="captions",
        systems={OURS: partial(system, ours), "clip_benchmark": partial(system, one_hot_recall)},
        against={"clip_benchmark": OURS},
        prove=prove,
        repeats=2,
    )
]
