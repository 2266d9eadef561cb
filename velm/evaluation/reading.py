"""The records of a split batch by batch, their images encoded; what cannot be read is left out, named and counted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from velm.data.bad_samples import BadSample, raise_if_too_many
from velm.data.base import Record, Records, image_name
from velm.data.images.transforms import EvalTransform
from velm.errors import DataError
from velm.outputs import EncoderOutput
from velm.pipeline import Pipeline

__all__ = ["MAX_BAD", "Encoded", "encoded", "remaining"]

MAX_BAD = 0.01
"""Share of the records that may be unreadable, as `data.max_bad` of a run."""


class Encoded(NamedTuple):
    """A batch.

    Attributes:
        done: records looked at by now, those that cannot be read among them.
        rows: places of the batch's records in the split.
        records: beside `rows`.
        image: beside `rows`; None where the model sees no images.
    """

    done: int
    rows: list[int]
    records: list[Record]
    image: EncoderOutput | None


def encoded(
    pipeline: Pipeline,
    records: Sequence[Record],
    batch_size: int,
    left_out: dict[int, BadSample] | None = None,
    *,
    max_bad: float = MAX_BAD,
) -> Iterator[Encoded]:
    """Records with their images encoded, batch by batch; black where a record has none.

    Args:
        pipeline: whose image encoder it is.
        records: one an image.
        batch_size: images at a time.
        left_out: is filled with what is wrong, by place, where an image cannot be read (in order once all are read);
            None: that is an error.
        max_bad: share of the records, in [0, 1], that may be left out.

    Raises:
        DataError: no record has an image, one has no sentence, or an image cannot be read and `left_out` is None.
        BadDataError: more than `max_bad` of the records cannot be read.
    """
    sees = pipeline.model.image_encoder is not None
    reader = _Reader(records, pipeline.transform, left_out)
    if sees and not any(image is not None for _, image, _ in reader):
        raise DataError(f"None of the {len(records)} records has an image, and the model has an image encoder.")
    images = pipeline.encode_images(reader, batch_size=batch_size, transform=reader.pixels)
    known = 0
    for start in range(0, len(records), batch_size):
        places = range(start, min(start + batch_size, len(records)))
        image = next(images) if sees else None
        bad = {place: bad_sample for place, bad_sample in sorted((left_out or {}).items()) if place < places.stop}
        if len(bad) > known:
            known = len(bad)
            bad_samples = [*getattr(records, "bad_samples", ()), *bad.values()]
            raise_if_too_many(bad_samples, len(records), max_bad, "the split")
        rows = [place for place in places if place not in bad]
        chunk = [records[row] for row in rows]
        for record in chunk:
            if not record.texts:
                raise DataError(f"Record {record.image_id!r} has no sentence to hold results against.")
        if image is not None and len(rows) < len(places):
            seen = torch.tensor([row - start for row in rows], dtype=torch.int64, device=image.features.device)
            image = image.select(seen)
        yield Encoded(places.stop, rows, chunk, image)
    if left_out:  # threads read ahead and fill it in any order
        faults_in_order = sorted(left_out.items())
        left_out.clear()
        left_out.update(faults_in_order)


def remaining(records: Sequence[Record], left_out: Mapping[int, BadSample]) -> Sequence[Record]:
    """The records without those that are left out."""
    return _Remaining(records, left_out) if left_out else records


class _Remaining(Records):
    """A view; what is known of the whole (classes without an image, bad_samples of its opening) stays known."""

    def __init__(self, records: Sequence[Record], left_out: Mapping[int, BadSample]) -> None:
        self.source = records
        self.rows = [row for row in range(len(records)) if row not in left_out]
        self.classes = getattr(records, "classes", None)
        self.bad_samples = getattr(records, "bad_samples", ())

    def __len__(self) -> int:
        return len(self.rows)

    def record(self, place: int) -> Record:
        return self.source[self.rows[place]]


class _Reader(Sequence[Any]):
    """Places, images and their names, made when they are asked for; `pixels` reads one in whatever thread."""

    def __init__(
        self, records: Sequence[Record], transform: EvalTransform, left_out: dict[int, BadSample] | None
    ) -> None:
        self.records, self.transform, self.left_out = records, transform, left_out

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, place: Any) -> Any:
        try:
            record = self.records[place]
            return place, record.image, image_name(record)
        except IndexError:  # the end, for those who go through it
            raise
        except Exception as error:  # it is the record that cannot be had
            self._leave_out(place, f"record {place}", error)
            return place, None, ""

    def pixels(self, item: tuple[int, Any, str]) -> Tensor:
        """uint8 (3, H, W); black where there is no image or it is left out."""
        place, image, name = item
        if image is not None:
            try:
                return self.transform(image)
            except Exception as error:  # whatever a codec, a disk or somebody's image raises
                self._leave_out(place, name, error)
        return self.transform(np.zeros((1, 1, 3), np.uint8))

    def _leave_out(self, place: int, name: str, error: Exception) -> None:
        if self.left_out is None:
            raise error
        cause = str(error) if isinstance(error, DataError) else f"{type(error).__name__}: {error}"
        self.left_out[place] = BadSample(name, cause, lost=0)
