"""Folds: each is the plain figure of its own images and texts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from velm.metrics.folds import fold_metrics
from velm.metrics.retrieval import retrieval_metrics


def split(images: int = 23) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.arange(images).repeat_interleave(3)[torch.randperm(3 * images, generator=generator)]
    image = torch.randn(images, 6, generator=generator)
    return image, image[ids] + torch.randn(len(ids), 6, generator=generator), ids


def test_the_mean_of_the_folds() -> None:
    image, text, ids = split()
    parts = []
    for start in range(0, 20, 4):  # 23 images in five folds: four each, three left over
        own = [j for j, owner in enumerate(ids.tolist()) if start <= owner < start + 4]
        parts.append(retrieval_metrics(image[start : start + 4], text[own], [int(ids[j]) - start for j in own]))
    assert fold_metrics(image, text, ids) == pytest.approx(
        {name: sum(part[name] for part in parts) / 5 for name in parts[0]}
    )


def test_one_fold_is_everything_and_smaller_galleries_are_easier() -> None:
    whole = retrieval_metrics(*split())
    assert fold_metrics(*split(), folds=1) == pytest.approx(whole)
    assert fold_metrics(*split(), folds=5)["text_to_image/mrr"] > whole["text_to_image/mrr"]
    assert fold_metrics(*(each.tolist() for each in split())) == pytest.approx(fold_metrics(*split()))


@pytest.mark.parametrize("folds", [0, 24])
def test_too_few_or_many_folds_are_refused(folds: int) -> None:
    with pytest.raises(ValueError, match=f"folds {folds} of 23 images"):
        fold_metrics(*split(), folds=folds)
