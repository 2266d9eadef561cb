"""Thumbnails of a report: each image that is shown is stored once, with what the model saw of it, as a JPEG."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

from PIL import Image

from velm.data.base import Record
from velm.data.images.transforms import EvalTransform, Resize, read_image
from velm.errors import DataError

__all__ = ["Album", "counted"]

SIDE = 160  # pixels, of a square as large as the thumbnail
LONGEST = 3  # how many times longer than wide one may be
QUALITIES = (75, 50, 30)  # of JPEG; the first that is small enough, which for photographs is the first
BUDGET = 9000  # bytes: a thousand stay at 12 MB, whatever they show


def counted(records: Sequence[Record]) -> str:
    """'5,000 images', or '5,000 records' where there are no images."""
    return f"{len(records):,} {'records' if records[0].image is None else 'images'}"


class Album:
    """Images by the number under which they are shown, in the order of their first asking.

    Args:
        records: of the split.
        resize: what the model's transform takes of an image, so that maps lie where they belong: 'crop' the square
            in the middle, 'squash' all of it, which is shown unsquashed.
    """

    def __init__(self, records: Sequence[Record], resize: Resize = "crop") -> None:
        self.records, self.resize = records, resize
        self.transform = EvalTransform(image_size=SIDE, resize=resize)
        self._numbers: dict[int, int] = {}
        self._images: list[dict[str, Any]] = []

    def number(self, row: int) -> int:
        """The number of a record's image; it is read when it is first asked for."""
        if row not in self._numbers:
            self._numbers[row] = len(self._images)
            record = self.records[row]
            self._images.append({"name": record.image_id, **self._shown(record)})
        return self._numbers[row]

    def images(self) -> list[dict[str, Any]]:
        """`name`, the image_id; `uri`, None where there is nothing to show; `ratio`, its width by its height."""
        return self._images

    def _shown(self, record: Record) -> dict[str, Any]:
        try:
            image = None if record.image is None else self._thumbnail(record.image)
        except DataError:
            image = None
        if image is None:
            return {"uri": None, "ratio": 1.0}
        uri = "data:image/jpeg;base64," + base64.b64encode(_jpeg(image)).decode()
        return {"uri": uri, "ratio": round(image.width / image.height, 3)}

    def _thumbnail(self, image: Any) -> Image.Image:
        if self.resize == "crop":
            return Image.fromarray(self.transform(image).permute(1, 2, 0).numpy())
        whole = read_image(image, minimum=SIDE)
        ratio = min(max((whole.width / whole.height) ** 0.5, LONGEST**-0.5), LONGEST**0.5)
        return whole.resize((round(SIDE * ratio), round(SIDE / ratio)), Image.Resampling.BILINEAR)


def _jpeg(image: Image.Image) -> bytes:
    content = b""
    for quality in QUALITIES:
        target = io.BytesIO()
        image.save(target, "JPEG", quality=quality, optimize=True)
        content = target.getvalue()
        if len(content) <= BUDGET:
            break
    return content
