"""Images to uint8 arrays, bit for bit as `velm.data.images.transforms.EvalTransform` makes them."""

from __future__ import annotations

from typing import Any

import numpy as np

from velm.data.images.decode import read_image
from velm.data.images.geometry import Geometry
from velm.onnx.resize import resize

__all__ = ["ArrayTransform"]


class ArrayTransform(Geometry):
    """A deterministic square of the image; see `Geometry` for its options."""

    def __call__(self, image: Any) -> np.ndarray:
        """An image (see `read_image`) as uint8 (3, image_size, image_size).

        Raises:
            DataError: the image cannot be read.
        """
        read = read_image(image, self.image_size if self.decode == "scaled" else None)
        return np.ascontiguousarray(self.square(np.asarray(read).transpose(2, 0, 1)))

    def scale(self, pixels: np.ndarray, box: tuple[int, int, int, int], size: tuple[int, int]) -> np.ndarray:
        left, top, width, height = box
        part = pixels[:, top : top + height, left : left + width].transpose(1, 2, 0)
        return resize(part, size, self.interpolation).transpose(2, 0, 1)

    def blank(self, pixels: np.ndarray) -> np.ndarray:
        return np.zeros((3, self.image_size, self.image_size), dtype=np.uint8)
