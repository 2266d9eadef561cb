"""The contract of a dataset: named splits, each a sequence of records, one record per image."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np

__all__ = [
    "Dataset",
    "DetectedFormat",
    "EncodedImage",
    "Record",
    "Records",
    "Turn",
    "first_records",
    "image_name",
    "index_dtype",
    "no_image_message",
    "questions",
    "text_counts",
    "text_only",
]


class DetectedFormat(UserWarning):
    """What was detected in a file and is not the default, such as its delimiter; nothing is wrong with the data."""


@dataclass(frozen=True)
class EncodedImage:
    """An image inside a larger file (a tar shard, a Parquet column), read when it is used.

    Attributes:
        name: shown in messages, such as 'shards/00000.tar/000012.jpg'.
        load: returns the bytes of the image file (JPEG, PNG, ...); picklable, so that workers can receive it.
    """

    name: str
    load: Callable[[], bytes]


Turn = tuple[str, str]
"""A question and its answer."""


@dataclass(frozen=True)
class Record:
    """One image and its captions.

    Attributes:
        image_id: equal for equal images, in all splits.
        image: a path, an `EncodedImage`, a PIL image, a uint8 array (H, W, 3), or None where the data has no images.
        texts: captions of the image; each of them is correct.
        targets: the text to generate for each of `texts` (a translation, an answer); None: the text itself.
        metadata: anything else, in plain Python types (boxes in pixels, attributes).
        weights: sampling weight of each of `texts`, at least 0 (`captions: weighted`); None: uniform.
        histories: for each of `texts`, the earlier (question, answer) pairs of its conversation; None: there are none.
    """

    image_id: str
    image: Any
    texts: tuple[str, ...]
    targets: tuple[str, ...] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    weights: tuple[float, ...] | None = None
    histories: tuple[tuple[Turn, ...], ...] | None = None

    def history(self, index: int) -> tuple[Turn, ...]:
        """The earlier (question, answer) pairs of text number `index`."""
        return () if self.histories is None else self.histories[index]


def questions(record: Record) -> dict[tuple[str, tuple[Turn, ...]], tuple[str, ...]]:
    """The targets of each text with its history, in order; equal ones are joined."""
    joined: dict[tuple[str, tuple[Turn, ...]], tuple[str, ...]] = {}
    for index, (text, target) in enumerate(zip(record.texts, record.targets or (), strict=True)):
        key = (text, record.history(index))
        joined[key] = (*joined.get(key, ()), target)
    return joined


def validation_text(record: Record, number: int) -> int:
    """Index of the text of record `number` of a split that a validation reads: the first one.

    Of texts with targets it is another one from record to record, because data often list the kinds of questions in the
    same order for all images, and a validation of the first one would measure one kind.
    """
    return number % len(record.texts) if record.targets is not None else 0


class Records(Sequence[Record]):
    """Records that are built on access. A subclass implements `__len__` and `record`."""

    @property
    def faults(self) -> Sequence[Any]:
        """The name of `bad_samples` before 0.2."""
        return getattr(self, "bad_samples", ())

    @abstractmethod
    def record(self, index: int) -> Record:
        """The record at an index, 0 <= index < len."""

    def text_only(self, index: int) -> Record:
        """Like `record`, but image and metadata may be left out if building them is slow."""
        return self.record(index)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        positive = index + len(self) if index < 0 else index
        if not 0 <= positive < len(self):
            raise IndexError(f"record {positive} of {len(self)}")
        return self.record(positive)


class Dataset(ABC):
    """A source of records, by split. Constructors take keyword arguments with type hints and read little.

    Attributes:
        max_bad: largest share of unusable records in a split, in [0, 1]; a run sets it to `data.max_bad`. Unusable
            records are left out and listed in `records.bad_samples` (see `velm.data.bad_samples`).
    """

    max_bad: float = 0.01

    @abstractmethod
    def split(self, name: str) -> Sequence[Record]:
        """The records of a split ('train', 'val', 'test').

        Raises:
            MissingSplitError: there is no such split, or it is empty; the message lists the splits there are.
            BadDataError: more than `max_bad` of its records are unusable.
            DataError: the data is invalid in another way.
        """


def image_name(record: Record) -> str:
    """The name of a record's image in messages: its path if it has one, else the image id."""
    image = record.image
    if isinstance(image, EncodedImage):
        return image.name
    return os.fspath(image) if isinstance(image, str | os.PathLike) else record.image_id


def no_image_message(path: str) -> str:
    """The message for an image file that does not exist."""
    return f"There is no image {path!r}."


def text_only(records: Sequence[Record], index: int) -> Record:
    """`records.text_only(index)` if these are `Records`, else `records[index]`; 0 <= index < len."""
    return records.text_only(index) if isinstance(records, Records) else records[index]


def text_counts(records: Sequence[Record]) -> np.ndarray:
    """int (records,), the number of texts of each record: `records.text_counts` if it exists."""
    known = getattr(records, "text_counts", None)
    return np.asarray([len(text_only(records, i).texts) for i in range(len(records))] if known is None else known)


def index_dtype(count: int) -> type[np.signedinteger]:
    """The smaller integer dtype that holds the indices of `count` rows: a long table has several such arrays."""
    return np.int32 if count <= np.iinfo(np.int32).max else np.int64


def first_records(records: Sequence[Record]) -> np.ndarray:
    """int (records,), the index of the first record with the same image.

    Two records show the same image where `records.image_indices`, int (records,), is equal; without that attribute,
    each record has an image of its own.
    """
    image_indices = getattr(records, "image_indices", None)
    if image_indices is None:
        return np.arange(len(records), dtype=index_dtype(len(records)))
    _, first, image = np.unique(np.asarray(image_indices), return_index=True, return_inverse=True)
    return first[image.reshape(-1)]
