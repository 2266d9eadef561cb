"""Samples to batches."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from velm.data.bad_samples import BadSample
from velm.data.base import Record, text_only
from velm.data.batches.samples import Item
from velm.data.text.base import Tokenizer
from velm.outputs import Batch

if TYPE_CHECKING:
    from velm.data.feature_cache.store import FeatureReader

__all__ = ["Collate", "check_lengths", "pad_tokens"]


class Collate:
    """Items to a `Batch`, padded to the longest of the batch; without any, it has no samples and no images.

    Args:
        pad_id: the tokenizer's.
        features: what the items' images are rows of, where they come encoded.
    """

    def __init__(self, pad_id: int, features: FeatureReader | None = None) -> None:
        self.pad_id, self.features = pad_id, features

    def __call__(self, samples: Sequence[Item | BadSample]) -> Batch:
        items = [sample for sample in samples if isinstance(sample, Item)]
        tokens, mask = pad_tokens([item.tokens for item in items], self.pad_id)
        targets = [item.target for item in items if item.target is not None]
        target_tokens, target_mask = pad_tokens(targets, self.pad_id) if targets else (None, None)
        shown, rows = _shared_images(items)
        return Batch(
            images=_stacked(shown) if self.features is None else None,
            tokens=tokens,
            mask=mask,
            image_ids=torch.tensor([item.image_id for item in items], dtype=torch.int64),
            target_tokens=target_tokens,
            target_mask=target_mask,
            image_rows=torch.tensor(rows) if len(shown) < len(items) else None,
            bad_samples=tuple(sample for sample in samples if isinstance(sample, BadSample)),
            encoded=None if self.features is None else self.features.read(shown),
        )


def _shared_images(items: Sequence[Item]) -> tuple[list[Tensor | None], list[int]]:
    """Every image once, though neighbours may share it, and which of them each item shows."""
    shown: list[Tensor | None] = []
    rows: list[int] = []
    before: Item | None = None
    for item in items:
        if before is None or item.image is None or item.image_id != before.image_id or item.image is not before.image:
            shown.append(item.image)
        rows.append(len(shown) - 1)
        before = item
    return shown, rows


def pad_tokens(sentences: Sequence[list[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Sentences padded to the longest of them: tokens int64 (B, T) and mask bool (B, T)."""
    lengths = torch.tensor([len(ids) for ids in sentences], dtype=torch.int64)
    longest = max(map(len, sentences), default=0)
    tokens = torch.tensor([ids + [pad_id] * (longest - len(ids)) for ids in sentences], dtype=torch.int64)
    return tokens.reshape(len(sentences), longest), torch.arange(longest) < lengths[:, None]


def _stacked(images: Sequence[Tensor | None]) -> Tensor | None:
    """uint8 (B, 3, H, W), black where one of the images is missing; None where all are."""
    shape = next((image.shape for image in images if image is not None), None)
    if shape is None:
        return None
    return torch.stack([torch.zeros(shape, dtype=torch.uint8) if image is None else image for image in images])


def check_lengths(records: Sequence[Record], tokenizer: Tokenizer, max_length: int, limit: int = 10_000) -> int:
    """How many sentences are longer than `max_length` tokens and will be cut; warns once if there are any.

    Args:
        limit: records to look at, evenly spaced; all where there are fewer.

    Returns:
        the number of long sentences (texts and targets) among those looked at.
    """
    places = np.unique(np.linspace(0, len(records) - 1, min(limit, len(records))).round().astype(int))
    lengths = np.array(
        [
            tokenizer.length(text)
            for record in (text_only(records, place) for place in places.tolist())
            for text in (*record.texts, *(record.targets or ()))
        ]
    )
    long, longest = int((lengths > max_length).sum()), int(lengths.max())
    if long:
        warnings.warn(
            f"{long} of {len(lengths)} sentences ({100 * long / len(lengths):.1f}%) are longer than max_length = "
            f"{max_length} tokens (bos and eos included) and are cut; the longest has {longest}. "
            f"Set max_length to {longest} to keep them whole.",
            stacklevel=2,
        )
    return long
