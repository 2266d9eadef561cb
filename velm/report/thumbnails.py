"""Thumbnails of a report: each image that is shown is stored once, as the model's transform cuts it, as a JPEG."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

from PIL import Image

from velm.data.base import Record
from velm.data.images.transforms import EvalTransform, Resize, read_image
from velm.errors import DataError

SIDE = 160  # pixels, of a square with the area of a thumbnail
LONGEST = 3  # maximal aspect ratio
QUALITY = 50  # of JPEG: a photograph takes about 4 kB, noise 10 kB


def count_images(records: Sequence[Record]) -> str:
    """'5,000 images', or '5,000 records' if they have no images."""
    return f"{len(records):,} {'records' if records[0].image is None else 'images'}"


class Thumbnails:
    """The images of a report, numbered in the order of first use.

    Args:
        resize: that of the model's transform, so that attention maps fit the image: its square, and with 'squash' the
            whole image in its own aspect ratio.
    """

    def __init__(self, records: Sequence[Record], resize: Resize = "crop") -> None:
        self.records, self.resize = records, resize
        self.transform = EvalTransform(image_size=SIDE, resize=resize)
        self._images: dict[int, tuple[int, dict[str, Any]]] = {}  # row -> number, image

    def number(self, row: int) -> int:
        """The number of a record's image; the image is read on first use."""
        if row not in self._images:
            record = self.records[row]
            self._images[row] = (len(self._images), {"name": record.image_id, **self._encode(record)})
        return self._images[row][0]

    def images(self) -> list[dict[str, Any]]:
        """`name`: the image_id; `uri`: None if there is no readable image; `ratio`: width / height."""
        return [image for _, image in self._images.values()]

    def _encode(self, record: Record) -> dict[str, Any]:
        try:
            image = None if record.image is None else self._thumbnail(record.image)
        except DataError:
            image = None
        if image is None:
            return {"uri": None, "ratio": 1.0}
        jpeg = io.BytesIO()
        image.save(jpeg, "JPEG", quality=QUALITY, optimize=True)
        uri = "data:image/jpeg;base64," + base64.b64encode(jpeg.getvalue()).decode()
        return {"uri": uri, "ratio": round(image.width / image.height, 3)}

    def _thumbnail(self, image: Any) -> Image.Image:
        if self.resize not in ("squash", "enlarge"):
            return Image.fromarray(self.transform(image).permute(1, 2, 0).numpy())
        original = read_image(image, minimum=SIDE)
        ratio = min(max((original.width / original.height) ** 0.5, LONGEST**-0.5), LONGEST**0.5)
        return original.resize((round(SIDE * ratio), round(SIDE / ratio)), Image.Resampling.BILINEAR)
