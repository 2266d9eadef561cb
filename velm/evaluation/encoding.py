"""Encodes the images of a split batch by batch; unreadable images are skipped, named and counted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from velm.data.bad_samples import BadSample, raise_if_too_many
from velm.data.base import Record, Records, image_name
from velm.data.images.transforms import EvalTransform
from velm.errors import DataError, PipelineError, cause_of
from velm.outputs import EncoderOutput
from velm.pipeline import Pipeline

MAX_BAD = 0.01
"""Fraction of the records that may be unreadable, as `data.max_bad` of a run."""


class EncodedBatch(NamedTuple):
    """A batch of encoded records.

    Attributes:
        done: number of records processed so far, unreadable ones included.
        rows: indices of the batch's records in the split.
        records: the records of `rows`.
        image: the encoder's output, row i of `rows[i]`; None if the model has no image encoder.
    """

    done: int
    rows: list[int]
    records: list[Record]
    image: EncoderOutput | None


def encode_records(
    pipeline: Pipeline,
    records: Sequence[Record],
    batch_size: int,
    unreadable: dict[int, BadSample] | None = None,
    *,
    max_bad: float = MAX_BAD,
) -> Iterator[EncodedBatch]:
    """Yield the records with their images encoded, batch by batch; a record without an image is encoded as black.

    Args:
        unreadable: filled with the unreadable records by index, sorted when the iteration ends; None: they raise.
        max_bad: fraction of the records, in [0, 1], that may be unreadable.

    Raises:
        DataError: no record has an image, a record has no caption, or one is unreadable and `unreadable` is None.
        BadDataError: more than `max_bad` of the records are unreadable.
    """
    sees = pipeline.model.image_encoder is not None
    reader = _Reader(records, pipeline.transform, unreadable)
    if sees and not any(image is not None for _, image, _ in reader):
        raise DataError(f"None of the {len(records)} records has an image, and the model has an image encoder.")
    images = pipeline.encode_images(reader, batch_size=batch_size, transform=reader.pixels)
    known = 0
    for start in range(0, len(records), batch_size):
        indices = range(start, min(start + batch_size, len(records)))
        image = next(images) if sees else None
        bad = {index: sample for index, sample in sorted((unreadable or {}).items()) if index < indices.stop}
        if len(bad) > known:
            known = len(bad)
            bad_samples = [*getattr(records, "bad_samples", ()), *bad.values()]
            raise_if_too_many(bad_samples, len(records), max_bad, "the split")
        rows = [index for index in indices if index not in bad]
        chunk = [records[row] for row in rows]
        for record in chunk:
            if not record.texts:
                raise DataError(f"Record {record.image_id!r} has no caption to compare results with.")
        if image is not None and len(rows) < len(indices):
            readable = torch.tensor([row - start for row in rows], dtype=torch.int64, device=image.features.device)
            image = image.select(readable)
        yield EncodedBatch(indices.stop, rows, chunk, image)
    if unreadable:  # threads read ahead and fill it in any order
        in_order = sorted(unreadable.items())
        unreadable.clear()
        unreadable.update(in_order)


def encode_images(
    pipeline: Pipeline,
    records: Sequence[Record],
    batch_size: int,
    unreadable: dict[int, BadSample] | None = None,
    *,
    max_bad: float = MAX_BAD,
) -> Iterator[tuple[list[int], EncoderOutput]]:
    """As `encode_records`, but yields (rows, encoder output); PipelineError if the model has no image encoder."""
    if pipeline.model.image_encoder is None:
        raise PipelineError("The model has no image encoder, so it has no image features.")
    for batch in encode_records(pipeline, records, batch_size, unreadable, max_bad=max_bad):
        if batch.image is not None:
            yield batch.rows, batch.image


def readable_records(records: Sequence[Record], unreadable: Mapping[int, BadSample]) -> Sequence[Record]:
    """A view of the records without the unreadable ones."""
    return _ReadableRecords(records, unreadable) if unreadable else records


class _ReadableRecords(Records):
    """A view that keeps what is known of the whole split: its classes and the bad samples found on opening."""

    def __init__(self, records: Sequence[Record], unreadable: Mapping[int, BadSample]) -> None:
        self.source = records
        self.rows = [row for row in range(len(records)) if row not in unreadable]
        self.classes, self.folders = (getattr(records, name, None) for name in ("classes", "folders"))
        self.bad_samples = getattr(records, "bad_samples", ())

    def __len__(self) -> int:
        return len(self.rows)

    def record(self, place: int) -> Record:
        return self.source[self.rows[place]]


class _Reader(Sequence[Any]):
    """(index, image, name) of each record, made on access; `pixels` decodes one, in any thread."""

    def __init__(
        self, records: Sequence[Record], transform: EvalTransform, unreadable: dict[int, BadSample] | None
    ) -> None:
        self.records, self.transform, self.unreadable = records, transform, unreadable

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: Any) -> Any:
        try:
            record = self.records[index]
            return index, record.image, image_name(record)
        except IndexError:  # ends iteration
            raise
        except Exception as error:  # the record itself cannot be read
            self._skip(index, f"record {index}", error)
            return index, None, ""

    def pixels(self, item: tuple[int, Any, str]) -> Tensor:
        """uint8 (3, H, W); black if there is no image or it is unreadable."""
        index, image, name = item
        if image is not None:
            try:
                return self.transform(image)
            except Exception as error:  # any error of a codec, a disk or a dataset
                self._skip(index, name, error)
        return self.transform(np.zeros((1, 1, 3), np.uint8))

    def _skip(self, index: int, name: str, error: Exception) -> None:
        if self.unreadable is None:
            raise error
        self.unreadable[index] = BadSample(name, cause_of(error), lost=0)
