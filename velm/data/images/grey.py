"""Grey images of more than 8 bits, as medical and microscope images are: scaled by the range that they hold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

__all__ = ["GreyRange", "grey_range", "is_deep", "to_eight_bits"]

DIM = 1 / 8  # floats in [0, 1] below this are no share of white: 12 bits divided by 65535, for example
DEPTHS = (8, 10, 12, 14, 16)  # bits per pixel of detectors


@dataclass(frozen=True)
class GreyRange:
    """The values of a grey image and how they become 0..255.

    Attributes:
        low: smallest finite value.
        high: largest finite value.
        bits: values in [0, 2**bits) keep their 8 highest bits; None for the other rules.
        unit: values in [0, 1] are multiplied by 255; else [low, high] becomes [0, 255].
    """

    low: float
    high: float
    bits: int | None
    unit: bool

    def __str__(self) -> str:
        rule = "[0, 1]" if self.unit else "its own range" if self.bits is None else f"{self.bits} bits"
        return f"{self.low:g} to {self.high:g}, read as {rule}"


def is_deep(image: Image.Image) -> bool:
    """Whether an image is grey with more than 8 bits per pixel: integers (modes I, I;16, ...) or floats (mode F)."""
    return image.mode.startswith("I") or image.mode == "F"


def grey_range(values: np.ndarray) -> GreyRange:
    """The range of int or float (H, W); infinite values and NaN do not count."""
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    integers = np.issubdtype(values.dtype, np.integer) and low >= 0
    bits = next((depth for depth in DEPTHS if integers and high < 2**depth), None)
    return GreyRange(low, high, bits, unit=values.dtype.kind == "f" and low >= 0 and DIM < high <= 1)


def to_eight_bits(image: Image.Image) -> Image.Image:
    """A deep grey image (`is_deep`) as mode L; a function of this image alone.

    Integers from 0 keep the 8 highest of 8, 10, 12, 14 or 16 bits, the fewest that hold the largest value, so that the
    images of one detector get one scale. Floats in [0, 1], some above `DIM`, are multiplied by 255. All others
    (negative values such as Hounsfield units, 32 bits, other floats) are mapped from their smallest and largest value
    to 0 and 255. NaN is 0.
    """
    values = np.asarray(image)
    held = grey_range(values)
    if held.bits is not None:
        return Image.fromarray((values >> (held.bits - 8)).astype(np.uint8))
    low, high = (0.0, 1.0) if held.unit else (held.low, held.high)
    scaled = (
        (np.nan_to_num(values.astype(np.float64), nan=low, posinf=high, neginf=low) - low) * 255 / (high - low or 1.0)
    )
    return Image.fromarray(scaled.round().clip(0, 255).astype(np.uint8))
