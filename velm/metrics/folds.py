"""Retrieval by the field's protocol for large test splits: the mean over folds of images, and all of them.

Karpathy and Fei-Fei 2015 (arXiv 1412.2306) report MS-COCO on "1K" images, the mean over the five folds of the 5,000
of the test split, in their order, and on all "5K". A gallery five times as large is harder; the two do not compare.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from velm.metrics.retrieval import retrieval_metrics

__all__ = ["check_folds", "fold_metrics"]


def fold_metrics(
    image_embeds: Any, text_embeds: Any, image_ids: Any, *, folds: int = 5, ks: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """The mean over folds of `retrieval_metrics`; a fold is a stretch of images with their own texts.

    Args:
        image_embeds, text_embeds, image_ids: as at the head of `velm.metrics.retrieval`, images in order.
        folds: how many, at least 1, all of one size; the last images, fewer than there are folds, may be in none.
        ks: numbers of answers looked at.
    """
    image, text, ids = (torch.as_tensor(each) for each in (image_embeds, text_embeds, image_ids))
    check_folds(folds, len(image))
    size = len(image) // folds
    figures = []
    for start in range(0, folds * size, size):
        own = ((ids >= start) & (ids < start + size)).to(text.device)
        figures.append(retrieval_metrics(image[start : start + size], text[own], ids[own.to(ids.device)] - start, ks))
    return {name: sum(fold[name] for fold in figures) / folds for name in figures[0]}


def check_folds(folds: int, images: int) -> None:
    """Raise ValueError where so many images have not so many folds."""
    if not 1 <= folds <= images:
        raise ValueError(f"folds {folds} of {images} images: it takes 1 to as many as there are images.")
