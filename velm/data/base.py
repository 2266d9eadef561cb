"""The contract of a dataset: splits by name, each a sequence of records, one record an image."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

__all__ = [
    "Dataset",
    "EncodedImage",
    "Record",
    "Records",
    "image_name",
    "no_image",
    "worded",
]


def no_image(path: str) -> str:
    """What is said of an image file that is not there."""
    return f"There is no image {path!r}."


@dataclass(frozen=True)
class EncodedImage:
    """An image inside something larger (a tar shard, a Parquet column), fetched when it is looked at.

    Attributes:
        name: what messages call it, such as 'shards/00000.tar/000012.jpg'.
        load: gives the bytes of its file (JPEG, PNG, ...); picklable, so that workers can be sent it.
    """

    name: str
    load: Callable[[], bytes]


@dataclass(frozen=True)
class Record:
    """One image and its sentences.

    Attributes:
        image_id: the same for the same image, whatever the split.
        image: a path, an `EncodedImage`, a PIL image, a uint8 array (H, W, 3), or None where the data has no images.
        texts: its sentences; every one of them is right for the image.
        targets: what to write for the sentence of the same index (translation, answers), else None.
        metadata: whatever else is known, plain Python (boxes in pixels, attributes).
        weights: of the sentence of the same index, at least 0, how often it is to come beside the others
            (`captions: weighted`); None where they are alike.
    """

    image_id: str
    image: Any
    texts: tuple[str, ...]
    targets: tuple[str, ...] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    weights: tuple[float, ...] | None = None


def image_name(record: Record) -> str:
    """What a record's image is called in messages: its path, or whatever else it can be found by."""
    image = record.image
    if isinstance(image, EncodedImage):
        return image.name
    return os.fspath(image) if isinstance(image, str | os.PathLike) else record.image_id


def worded(records: Sequence[Record], place: int) -> Record:
    """The record at a place, 0 <= place < len, for whoever reads its sentences only (see `Records.worded`)."""
    return records.worded(place) if isinstance(records, Records) else records[place]


class Records(Sequence[Record]):
    """Records that are made when they are asked for; a subclass has `__len__` and `record`."""

    @abstractmethod
    def record(self, place: int) -> Record:
        """The record at a place, 0 <= place < len."""

    def worded(self, place: int) -> Record:
        """As `record`, for whoever reads sentences only; image and metadata are left out where they take time."""
        return self.record(place)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(f"record {place} of {len(self)}")
        return self.record(place)


class Dataset(ABC):
    """A named source of records. Constructors take keyword arguments with type hints, and read little.

    Attributes:
        max_bad: share of a split's records, in [0, 1], that may be unusable before opening it is an error; a run sets
            it to `data.max_bad`. What is left out is listed by `records.bad_samples` (see `velm.data.bad_samples`).
    """

    max_bad: float = 0.01

    @abstractmethod
    def split(self, name: str) -> Sequence[Record]:
        """The records of a split ('train', 'val', 'test').

        Raises:
            MissingSplitError: there is no such split, or it is empty; the message lists the splits there are.
            BadDataError: more than `max_bad` of it cannot be used.
            DataError: something else in it is wrong.
        """
