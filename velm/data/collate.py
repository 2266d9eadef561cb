"""Records to samples, samples to batches."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from velm.data.base import DataError, Record
from velm.data.indices import Repeats, as_array, first_shown
from velm.data.tokenizers import Tokenizer
from velm.outputs import Batch

__all__ = ["CaptionItems", "Captions", "Collate", "Item", "check_lengths", "cut", "pad_tokens", "text_counts"]

Captions = Literal["random", "all", "first"]


@dataclass
class Item:
    """One sample.

    Attributes:
        image: uint8 (3, H, W), None where the record has no picture.
        tokens: bos ... eos.
        target: bos ... eos of what to write, None where it is `tokens`.
        image_id: the place in its split of the first record that shows the picture.
        text_index: which of the record's texts this is.
    """

    image: Tensor | None
    tokens: list[int]
    target: list[int] | None
    image_id: int
    text_index: int


def text_counts(records: Sequence[Record]) -> np.ndarray:
    """int (records,), the number of texts of each record; asks `records.text_counts` where there is one."""
    known = getattr(records, "text_counts", None)
    return np.asarray([len(r.texts) for r in records] if known is None else known)


class CaptionItems(TorchDataset):
    """The samples of a split, by number or by (epoch, number).

    Which caption of a picture comes, and how the picture is cropped, are functions of (seed, epoch, sample):
    the number of workers changes nothing, and workers need not be told of a new epoch.

    Args:
        records: one a picture; where some are repeated, `records.pictures`, int (records,), says which are the same.
        tokenizer: makes ids of sentences.
        transform: `transform(image, rng) -> uint8 (3, H, W)`; None leaves pictures out.
        captions: 'random', one sample a picture, another of its captions each epoch until all have come;
            'all', one sample a caption; 'first', one sample a picture, always its first caption.
        seed: of captions and crops.
        max_length: tokens, bos and eos included; longer sentences are cut before their eos. None cuts nothing.
        has_target: whether samples carry targets; None, where the record has them.
        per_image: how many captions of a picture come with it in a step, which encodes the picture once for all of
            them; with 'random'. A picture with fewer repeats some.
    """

    def __init__(
        self,
        records: Sequence[Record],
        *,
        tokenizer: Tokenizer,
        transform: Callable[[Any, np.random.Generator], Tensor] | None,
        captions: Captions = "random",
        seed: int = 0,
        max_length: int | None = None,
        has_target: bool | None = None,
        per_image: int = 1,
    ) -> None:
        if per_image < 1 or (per_image > 1 and captions != "random"):
            raise ValueError(f"captions_per_image is at least 1, and 1 unless captions is random; got {per_image}.")
        if captions not in ("random", "all", "first"):
            raise ValueError(f"captions must be one of random, all, first; got {captions!r}.")
        if max_length is not None and max_length < 3:
            raise ValueError(f"max_length must be at least 3 tokens (bos, a word, eos), got {max_length}.")
        self.records, self.tokenizer, self.transform = records, tokenizer, transform
        self.captions, self.seed, self.max_length, self.has_target = captions, seed, max_length, has_target
        self.per_image = per_image
        counts = text_counts(records)
        self._place_of = Repeats(counts) if captions == "all" else range(len(counts))
        self._picture = first_shown(getattr(records, "pictures", None), len(counts))

    def __len__(self) -> int:
        return len(self._place_of)

    @property
    def picture_of(self) -> np.ndarray:
        """int (samples,), the first record that shows the same picture."""
        pictures = as_array(self._picture)
        return self._place_of.spread(pictures) if isinstance(self._place_of, Repeats) else pictures

    def __getitem__(self, key: int | tuple[int, int]) -> Item:
        return self._together(key)[0]

    def __getitems__(self, keys: Sequence[int | tuple[int, int]]) -> list[Item]:
        """`per_image` items for each key, neighbours that share one picture; a `DataLoader` asks for batches here."""
        return [item for key in keys for item in self._together(key)]

    def _together(self, key: int | tuple[int, int]) -> list[Item]:
        epoch, sample = key if isinstance(key, tuple) else (0, key)
        place = int(self._place_of[sample])
        record = self.records[place]
        image = self._image(record, epoch, sample)
        indices = [self._text_index(len(record.texts), epoch, n, sample, place) for n in range(self.per_image)]
        return [
            Item(
                image=image,
                tokens=self._ids(record.texts[index]),
                target=self._target(record, index),
                image_id=int(self._picture[place]),
                text_index=index,
            )
            for index in indices
        ]

    def _text_index(self, count: int, epoch: int, number: int, sample: int, place: int) -> int:
        """Which caption is the epoch's `number`-th of this sample."""
        if isinstance(self._place_of, Repeats):
            return sample - int(self._place_of.starts[place])
        if self.captions == "first" or count == 1:
            return 0
        lap, turn = divmod(epoch * self.per_image + number, count)  # within a lap each caption comes once
        return int(np.random.default_rng((self.seed, 1, lap, place)).permutation(count)[turn])

    def _image(self, record: Record, epoch: int, sample: int) -> Tensor | None:
        if self.transform is None or record.image is None:
            return None
        return self.transform(record.image, np.random.default_rng((self.seed, 2, epoch, sample)))

    def _target(self, record: Record, text_index: int) -> list[int] | None:
        if record.targets is not None and self.has_target is not False:
            return self._ids(record.targets[text_index])
        if self.has_target:
            raise DataError(f"Picture {record.image_id!r} has no target to write; the data must name a target column.")
        return None

    def _ids(self, text: str) -> list[int]:
        return cut(self.tokenizer.encode(text), self.max_length)


def cut(ids: list[int], max_length: int | None) -> list[int]:
    """A sentence of at most `max_length` tokens that still ends with its eos."""
    if max_length is None or len(ids) <= max_length:
        return ids
    return [*ids[: max_length - 1], ids[-1]]


class Collate:
    """Items to a `Batch`, padded to the longest of the batch.

    Args:
        pad_id: the tokenizer's.
    """

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, items: Sequence[Item]) -> Batch:
        tokens, mask = pad_tokens([item.tokens for item in items], self.pad_id)
        targets = [item.target for item in items if item.target is not None]
        target_tokens, target_mask = pad_tokens(targets, self.pad_id) if targets else (None, None)
        shown, rows = _shared_images(items)
        return Batch(
            images=_stacked(shown),
            tokens=tokens,
            mask=mask,
            image_ids=torch.tensor([item.image_id for item in items]),
            target_tokens=target_tokens,
            target_mask=target_mask,
            image_rows=torch.tensor(rows) if len(shown) < len(items) else None,
        )


def _shared_images(items: Sequence[Item]) -> tuple[list[Tensor | None], list[int]]:
    """Every picture once, though neighbours may share it, and which of them each item shows."""
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
    lengths = torch.tensor([len(ids) for ids in sentences])
    longest = int(lengths.max())
    tokens = torch.tensor([ids + [pad_id] * (longest - len(ids)) for ids in sentences])
    return tokens, torch.arange(longest) < lengths[:, None]


def _stacked(images: Sequence[Tensor | None]) -> Tensor | None:
    """uint8 (B, 3, H, W), black where one of the pictures is missing; None where all are."""
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
            len(tokenizer.encode(text))
            for record in (records[place] for place in places.tolist())
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
