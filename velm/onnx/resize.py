"""torch's antialiased resampling of uint8 images in numpy, bit for bit.

torch resamples uint8 in fixed point (aten/src/ATen/native/cpu/UpSampleKernel.cpp, after Pillow-SIMD): weights are
computed in double precision, rounded to int16 with as many fractional bits as the largest weight allows, and each of
the two passes, along the rows and then along the columns, is rounded to uint8.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np

__all__ = ["resize"]


def resize(pixels: np.ndarray, size: tuple[int, int], interpolation: str) -> np.ndarray:
    """uint8 (H, W, C) as uint8 (*size, C), as `torch.nn.functional.interpolate(..., antialias=True)`.

    Args:
        interpolation: bilinear, bicubic or lanczos.
    """
    rows, columns = size
    if pixels.shape[1] != columns:
        pixels = _resample(pixels, columns, interpolation, axis=1)
    if pixels.shape[0] != rows:
        pixels = _resample(pixels, rows, interpolation, axis=0)
    return pixels


def _resample(pixels: np.ndarray, outputs: int, interpolation: str, axis: int) -> np.ndarray:
    first, weights, bits = _taps(pixels.shape[axis], outputs, interpolation)
    shape = [1, 1, 1]
    shape[axis] = outputs
    total = np.full([*pixels.shape[:axis], outputs, *pixels.shape[axis + 1 :]], 1 << (bits - 1), dtype=np.int32)
    for tap, weight in enumerate(weights.T):  # a tap beyond an output's window has the weight 0
        place = np.minimum(first + tap, pixels.shape[axis] - 1)
        total += pixels.take(place, axis=axis) * weight.reshape(shape)
    return (total >> bits).clip(0, 255).astype(np.uint8)


@lru_cache(maxsize=256)
def _taps(inputs: int, outputs: int, interpolation: str) -> tuple[np.ndarray, np.ndarray, int]:
    """What each output sums: the first input int64 (outputs,), weights int32 (outputs, taps), fractional bits."""
    support, function = _FILTERS[interpolation]
    scale = inputs / outputs
    stretch = max(scale, 1.0)
    reach = support * stretch
    taps = math.ceil(reach) * 2 + 1
    centre = scale * (np.arange(outputs) + 0.5)
    first = np.maximum((centre - reach + 0.5).astype(np.int64), 0)
    count = (np.minimum((centre + reach + 0.5).astype(np.int64), inputs) - first).clip(0, taps)
    place = np.arange(taps)
    raw = np.vectorize(function)((place + first[:, None] - centre[:, None] + 0.5) / stretch)
    raw = np.where(place < count[:, None], raw, 0.0)
    weights = raw / np.cumsum(raw, axis=1)[:, -1:]  # in order, as torch sums
    bits = next(bits for bits in range(23) if bits == 22 or int(0.5 + weights.max() * (1 << (bits + 1))) >= 1 << 15)
    scaled = weights * (1 << bits)
    return first, np.where(scaled < 0, scaled - 0.5, scaled + 0.5).astype(np.int32), bits


def _bilinear(x: float) -> float:
    return max(0.0, 1.0 - abs(x))


def _bicubic(x: float, a: float = -0.5) -> float:
    x = abs(x)
    if x < 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * a if x < 2 else 0.0


def _lanczos(x: float) -> float:
    def sinc(y: float) -> float:
        return 1.0 if y == 0 else math.sin(math.pi * y) / (math.pi * y)

    return sinc(x) * sinc(x / 3) if -3 <= x < 3 else 0.0


_FILTERS: dict[str, tuple[float, Callable[[float], float]]] = {
    "bilinear": (1.0, _bilinear),
    "bicubic": (2.0, _bicubic),
    "lanczos": (3.0, _lanczos),
}
"""The half width of each filter, and the filter."""
