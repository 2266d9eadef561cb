"""Samples to batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from velm.data.bad_samples import BadSample
from velm.data.batches.samples import Sample
from velm.data.text.template import PromptIds
from velm.negatives import HardNegatives
from velm.outputs import Batch
from velm.prompt import Prompt

if TYPE_CHECKING:
    from velm.data.feature_cache.store import FeatureReader
    from velm.data.feature_cache.teacher import TeacherReader

__all__ = ["Collate", "pad_prompts", "pad_tokens"]


class Collate:
    """Samples to a `Batch`, padded to its longest text; bad samples are dropped.

    Without any readable sample the batch has length 0 and no images.

    Args:
        pad_id: padding token id.
        features: cached features that the samples' images are rows of; None: images are pixels.
        teacher: a teacher's cached embeddings, whose rows the samples have; None: no teacher.
    """

    def __init__(
        self, pad_id: int, features: FeatureReader | None = None, teacher: TeacherReader | None = None
    ) -> None:
        self.pad_id, self.features, self.teacher = pad_id, features, teacher

    def __call__(self, samples: Sequence[Sample | BadSample]) -> Batch:
        readable = [sample for sample in samples if isinstance(sample, Sample)]
        tokens, mask = pad_tokens([sample.tokens for sample in readable], self.pad_id)
        targets = [sample.target for sample in readable if sample.target is not None]
        target_tokens, target_mask = pad_tokens(targets, self.pad_id) if targets else (None, None)
        images, rows = _distinct_images(readable)
        return Batch(
            images=_stack(images) if self.features is None else None,
            tokens=tokens,
            mask=mask,
            image_ids=torch.tensor([sample.image_id for sample in readable], dtype=torch.int64),
            target_tokens=target_tokens,
            target_mask=target_mask,
            image_rows=torch.tensor(rows) if len(images) < len(readable) else None,
            sharing=max(Counter(rows).values(), default=1),
            encoded=None if self.features is None else self.features.read(images),
            teacher=None if self.teacher is None else self.teacher.read([s.teacher for s in readable if s.teacher]),
            prompt=pad_prompts([sample.prompt for sample in readable if sample.prompt is not None], self.pad_id),
            target_learnt=_learnt(readable),
            hard_negatives=self._hard_negatives(readable),
            stand_in=any(sample.stand_in for sample in readable),
        )

    def _hard_negatives(self, samples: Sequence[Sample]) -> HardNegatives | None:
        """The samples' hard negatives, with the caption in the place of missing ones; None if samples have none."""
        drawn = [(sample, sample.hard_negatives) for sample in samples if sample.hard_negatives is not None]
        if not drawn:
            return None
        texts = [sample.tokens if ids is None else ids for sample, negatives in drawn for ids in negatives]
        tokens, mask = pad_tokens(texts, self.pad_id)
        shape = (len(drawn), len(drawn[0][1]), -1)
        valid = torch.tensor([[ids is not None for ids in negatives] for _, negatives in drawn])
        return HardNegatives(tokens.view(shape), mask.view(shape), valid)


def pad_prompts(prompts: Sequence[PromptIds], pad_id: int) -> Prompt | None:
    """A batch of prompts, padded to the longest; None if there are none."""
    if not prompts:
        return None
    before, after = zip(*prompts, strict=True)
    return Prompt(*pad_tokens(before, pad_id), *pad_tokens(after, pad_id))


def _learnt(samples: Sequence[Sample]) -> Tensor | None:
    """bool (B, S), of targets not all of whose tokens are learnt; None: all are."""
    if all(sample.learnt is None for sample in samples):
        return None
    rows = [[True] * len(sample.target or ()) if sample.learnt is None else sample.learnt for sample in samples]
    return pad_tokens([[int(each) for each in row] for row in rows], 0)[0].bool()


def _distinct_images(samples: Sequence[Sample]) -> tuple[list[Tensor | None], list[int]]:
    """The images with those shared by neighbours listed once, and the index of each sample's image among them."""
    images: list[Tensor | None] = []
    rows: list[int] = []
    last: Sample | None = None
    for sample in samples:
        shared = last is not None and sample.image is not None and sample.image is last.image
        if last is None or not shared or sample.image_id != last.image_id:
            images.append(sample.image)
        rows.append(len(images) - 1)
        last = sample
    return images, rows


def pad_tokens(texts: Sequence[list[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Token ids padded to the longest text: tokens int64 (B, T) and mask bool (B, T)."""
    lengths = torch.tensor([len(ids) for ids in texts], dtype=torch.int64)
    longest = max(map(len, texts), default=0)
    tokens = torch.tensor([ids + [pad_id] * (longest - len(ids)) for ids in texts], dtype=torch.int64)
    return tokens.reshape(len(texts), longest), torch.arange(longest) < lengths[:, None]


def _stack(images: Sequence[Tensor | None]) -> Tensor | None:
    """uint8 (B, 3, H, W), black for missing images; None if all are missing."""
    shape = next((image.shape for image in images if image is not None), None)
    if shape is None:
        return None
    return torch.stack([torch.zeros(shape, dtype=torch.uint8) if image is None else image for image in images])
