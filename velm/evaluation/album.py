"""Thumbnails of a report: each picture that is shown is stored once, as the model saw it, in a JPEG of its own."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

from PIL import Image

from velm.data.base import DataError, Record
from velm.data.transforms import EvalTransform, Resize

__all__ = ["Album", "counted"]

SIDE = 160  # pixels
QUALITIES = (75, 50, 30)  # of JPEG; the first that is small enough, which for photographs is the first
BUDGET = 9000  # bytes: a thousand stay at 12 MB, whatever they show


def counted(records: Sequence[Record]) -> str:
    """'5,000 pictures', or '5,000 records' where there are no pictures."""
    return f"{len(records):,} {'records' if records[0].image is None else 'pictures'}"


class Album:
    """Pictures by the number under which they are shown, in the order of their first asking.

    Args:
        records: of the split.
        resize: what the model's transform takes of a picture, so that maps lie where they belong.
    """

    def __init__(self, records: Sequence[Record], resize: Resize = "crop") -> None:
        self.records = records
        self.transform = EvalTransform(image_size=SIDE, resize=resize)
        self._numbers: dict[int, int] = {}
        self._pictures: list[dict[str, Any]] = []

    def number(self, row: int) -> int:
        """The number of a record's picture; it is read when it is first asked for."""
        if row not in self._numbers:
            self._numbers[row] = len(self._pictures)
            record = self.records[row]
            self._pictures.append({"name": record.image_id, "uri": self._uri(record)})
        return self._numbers[row]

    def pictures(self) -> list[dict[str, Any]]:
        """`name`, the image_id, and `uri`, None where there is no picture or it cannot be read."""
        return self._pictures

    def _uri(self, record: Record) -> str | None:
        if record.image is None:
            return None
        try:
            pixels = self.transform(record.image)
        except DataError:
            return None
        content = _jpeg(Image.fromarray(pixels.permute(1, 2, 0).numpy()))
        return "data:image/jpeg;base64," + base64.b64encode(content).decode()


def _jpeg(image: Image.Image) -> bytes:
    content = b""
    for quality in QUALITIES:
        target = io.BytesIO()
        image.save(target, "JPEG", quality=quality, optimize=True)
        content = target.getvalue()
        if len(content) <= BUDGET:
            break
    return content
