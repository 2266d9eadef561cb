"""Metrics that are means over pairs or images as torchmetrics' classes; devices add up their sums and counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from velm.metrics.classification import top_k_hits
from velm.metrics.clipscore import clip_score, ref_clip_score

__all__ = ["ClipScore", "RefClipScore", "TopKAccuracy"]


class _Mean(Metric):
    """The mean of scores, one a pair."""

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_state("total", default=torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", default=torch.tensor(0), dist_reduce_fx="sum")

    def add(self, scores: Tensor) -> None:
        self.total += scores.double().sum()
        self.count += len(scores)

    def compute(self) -> float:
        """The mean; nan of nothing."""
        return float(self.total / self.count)


class ClipScore(_Mean):
    """The mean CLIPScore of captions that come in batches, in [0, 2.5]; see `velm.metrics.clipscore`."""

    def update(self, image_embeds: Tensor, caption_embeds: Tensor) -> None:
        """Embeddings float (B, E) of images and of their captions."""
        self.add(clip_score(image_embeds, caption_embeds))


class RefClipScore(_Mean):
    """The mean RefCLIPScore of captions that come in batches; see `velm.metrics.clipscore`."""

    def update(
        self, image_embeds: Tensor, caption_embeds: Tensor, reference_embeds: Tensor, reference_ids: Tensor
    ) -> None:
        """A batch.

        Args:
            image_embeds, caption_embeds: float (B, E).
            reference_embeds: float (m, E).
            reference_ids: int (m,), the row of this batch that each reference belongs to; each row has at least one.
        """
        self.add(ref_clip_score(image_embeds, caption_embeds, reference_embeds, reference_ids))


class TopKAccuracy(Metric):
    """Share of the images whose class is among the k best, ties against them; of zero-shot or of any scores.

    Args:
        ks: numbers of classes looked at.
        **options: torchmetrics'.
    """

    full_state_update = False
    hits: Tensor
    count: Tensor

    def __init__(self, *, ks: Sequence[int] = (1, 5), **options: Any) -> None:
        super().__init__(**options)
        self.ks = tuple(ks)
        self.add_state("hits", default=torch.zeros(len(self.ks), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("count", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, scores: Tensor, labels: Tensor) -> None:
        """Scores float (B, C) of the classes, and labels int (B,)."""
        self.hits += torch.stack([top_k_hits(scores, labels, k).sum() for k in self.ks])
        self.count += len(labels)

    def compute(self) -> dict[str, float]:
        """`top1`, `top5`, ... in [0, 1]; nan of nothing."""
        return {f"top{k}": float(hits / self.count) for k, hits in zip(self.ks, self.hits, strict=True)}
