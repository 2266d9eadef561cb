"""CLIPScore and RefCLIPScore: how well a caption fits its image, by the cosine of their embeddings.

Hessel et al. 2021 (arXiv 2104.08718). Scores depend on the model that embeds: those of different models are not
comparable. The paper uses CLIP ViT-B/32 with "A photo depicts" before each caption.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

__all__ = ["clip_score", "ref_clip_score"]

WEIGHT = 2.5
"""w of the paper; scales the cosines of CLIP to about [0, 1]."""


def clip_score(image_embeds: Any, caption_embeds: Any) -> Tensor:
    """w max(cos(image, caption), 0), w = 2.5, of each pair.

    Args:
        image_embeds: float (n, E); of any norm.
        caption_embeds: float (n, E), row i the caption of image i.

    Returns:
        float (n,), in [0, 2.5]; a row of zeros scores 0.
    """
    image, caption = _unit(image_embeds), _unit(caption_embeds)
    if image.dim() != 2 or image.shape != caption.shape:
        raise ValueError(
            f"image_embeds {tuple(image.shape)} and caption_embeds {tuple(caption.shape)} must be (n, E), one row "
            f"per pair."
        )
    return WEIGHT * (image * caption).sum(1).clamp(min=0)


def ref_clip_score(image_embeds: Any, caption_embeds: Any, reference_embeds: Any, reference_ids: Any) -> Tensor:
    """Harmonic mean of CLIPScore and the caption's largest cosine with its references, clamped at 0.

    Args:
        image_embeds, caption_embeds: as of `clip_score`.
        reference_embeds: float (m, E).
        reference_ids: int (m,), the row of the caption that each reference belongs to; each caption has at least one.

    Returns:
        float (n,); 0 if either term is 0.
    """
    score = clip_score(image_embeds, caption_embeds)
    caption, references = _unit(caption_embeds), _unit(reference_embeds)
    ids = torch.as_tensor(reference_ids).to(caption.device)
    if ids.shape != (len(references),) or ids.is_floating_point():
        raise ValueError(
            f"reference_ids is {ids.dtype} {tuple(ids.shape)}; an integer for each of the "
            f"{len(references)} references is required."
        )
    if ids.unique().tolist() != list(range(len(caption))):
        raise ValueError(
            f"reference_ids names {len(ids.unique())} rows; each of the rows 0 to "
            f"{len(caption) - 1} is required at least once, and no other."
        )
    cosines = (caption[ids] * references).sum(1)
    nearest = torch.zeros_like(score).scatter_reduce(0, ids, cosines.to(score), "amax")  # starts at 0: clamps
    both = score + nearest
    return torch.where(both > 0, 2 * score * nearest / both.where(both > 0, torch.ones_like(both)), 0.0)


def _unit(embeds: Any) -> Tensor:
    embeds = torch.as_tensor(embeds).detach()
    return normalize(embeds if embeds.dtype == torch.float64 else embeds.float(), dim=-1)
