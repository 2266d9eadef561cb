"""Classes by name: prompts embedded, ensembled, and how often the right one is among the first k."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

__all__ = ["ensemble_prompts", "top_k_accuracy", "top_k_hits"]


def ensemble_prompts(prompt_embeds: Any) -> Tensor:
    """One embedding a class from those of its prompts: the mean of the normalised, normalised.

    As CLIP does (Radford et al. 2021, arXiv 2103.00020, section 3.1.4): in the space of embeddings, so that any
    number of prompts costs what one costs.

    Args:
        prompt_embeds: float (C, P, E), P prompts for each of C classes; need not be normalised.

    Returns:
        float (C, E), L2-normalised.
    """
    embeds = torch.as_tensor(prompt_embeds).detach()
    if embeds.dim() != 3 or not embeds.numel():
        raise ValueError(f"prompt_embeds {tuple(embeds.shape)} is to be (C, P, E): P >= 1 prompts of C >= 1 classes.")
    return normalize(normalize(embeds, dim=-1).mean(1), dim=-1)


def top_k_hits(scores: Any, labels: Any, k: int) -> Tensor:
    """Whether the right class is among the k best; a tie (and nan) counts against it.

    Args:
        scores: float (n, C).
        labels: int (n,), columns of `scores`.
        k: number of classes looked at, >= 1.

    Returns:
        bool (n,).
    """
    scores = torch.as_tensor(scores).detach()
    labels = torch.as_tensor(labels).to(scores.device)
    if k < 1:
        raise ValueError(f"k {k} is below 1: it is a number of classes.")
    if scores.dim() != 2 or labels.shape != scores.shape[:1] or labels.is_floating_point():
        raise ValueError(
            f"scores {tuple(scores.shape)} and labels {labels.dtype} {tuple(labels.shape)} are to be float (n, C) "
            f"and int (n,)."
        )
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < scores.shape[1]:
        raise ValueError(
            f"labels run from {int(labels.min())} to {int(labels.max())}; there are classes 0 to {scores.shape[1] - 1}."
        )
    right = scores.gather(1, labels.long()[:, None])
    return (~(scores < right)).sum(1) <= k  # the right one is among what is not below it


def top_k_accuracy(scores: Any, labels: Any, k: int = 1) -> float:
    """Share of `top_k_hits`, in [0, 1]; arguments as there, n >= 1."""
    hits = top_k_hits(scores, labels, k)
    if not len(hits):
        raise ValueError("Nothing to classify: scores has no rows.")
    return int(hits.sum()) / len(hits)
