"""Images to uint8 tensors: decoding and geometry only.

Values stay uint8 until they are on the device, where the model normalises them: a quarter of the traffic between
processes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from velm._compat import has_lanczos
from velm.data.images.decode import read_image
from velm.data.images.geometry import CropRounding, Decode, Geometry, Interpolation, Resize
from velm.data.images.pixels import read_pixels

__all__ = [
    "CropRounding",
    "Decode",
    "EvalTransform",
    "Geometry",
    "Interpolation",
    "Resize",
    "TrainTransform",
    "read_image",
    "transform_from_config",
]

RATIO = (3 / 4, 4 / 3)  # of a random crop's sides, as in Szegedy et al. 2015


class TensorGeometry(Geometry):
    """`Geometry` of tensors; lanczos needs a torch that has it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        if self.interpolation == "lanczos" and not has_lanczos():
            raise ValueError(f"interpolation lanczos needs a newer torch than {torch.__version__}; take bicubic.")

    def read(self, image: Any, minimum: int) -> Tensor:
        """uint8 (3, H, W) of an image; its shorter side has at least `minimum` pixels if the file's has."""
        return read_pixels(image, minimum=minimum if self.decode == "scaled" else None)

    def square(self, pixels: Tensor) -> Tensor:
        """uint8 (3, H, W) as uint8 (3, image_size, image_size)."""
        square: Tensor = super().square(pixels)
        return square.contiguous()

    def scale(self, pixels: Tensor, box: tuple[int, int, int, int], size: tuple[int, int]) -> Tensor:
        """The box (left, top, width, height) of uint8 (3, H, W) as uint8 (3, *size), antialiased."""
        left, top, width, height = box
        part = pixels[None, :, top : top + height, left : left + width]
        if (height, width) != size:
            # On uint8, channels last, torch is about twice as fast as PIL.
            part = functional.interpolate(part, size, mode=self.interpolation, antialias=True)
        return part[0].contiguous()

    def blank(self, pixels: Tensor) -> Tensor:
        return pixels.new_zeros(3, self.image_size, self.image_size)


class EvalTransform(TensorGeometry):
    """A deterministic square of the image; see `Geometry` for its options."""

    def __call__(self, image: Any, rng: np.random.Generator | None = None) -> Tensor:
        """An image (see `read_image`) as uint8 (3, image_size, image_size); `rng` is unused."""
        return self.square(self.read(image, self.image_size))


class TrainTransform(TensorGeometry):
    """A random square of the image.

    Args:
        crop_scale: smallest and largest fraction of the image's area in a random box, in (0, 1]; None: the square of
            `EvalTransform`. With 'squash', 'enlarge' and 'longest' the box keeps the image's own aspect ratio on
            average, else it is square on average.
        flip: mirror half of the images. Off by default: captions mention 'left' and 'right'.
        color_jitter: brightness, contrast and saturation are each multiplied by up to 1 -+ this; in [0, 1].
        **geometry: options of `Geometry`.
    """

    def __init__(
        self,
        *,
        crop_scale: tuple[float, float] | None = (0.6, 1.0),
        flip: bool = False,
        color_jitter: float = 0.0,
        **geometry: Any,
    ) -> None:
        super().__init__(**geometry)
        if crop_scale is not None and not 0 < crop_scale[0] <= crop_scale[1] <= 1:
            raise ValueError(f"crop_scale must be two numbers, 0 < smallest <= largest <= 1; got {crop_scale}.")
        if not 0 <= color_jitter <= 1:
            raise ValueError(f"color_jitter must be in [0, 1], got {color_jitter}.")
        self.crop_scale, self.flip, self.color_jitter = crop_scale, flip, color_jitter

    def __call__(self, image: Any, rng: np.random.Generator) -> Tensor:
        """An image (see `read_image`) as uint8 (3, image_size, image_size), a function of it and of `rng`."""
        if self.crop_scale is None:
            pixels = self.square(self.read(image, self.image_size))
        else:
            area = rng.uniform(*self.crop_scale)
            ratio = math.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
            shorter = min(1.0, math.sqrt(area * min(ratio, 1 / ratio)))  # the box's, of the image's
            pixels = self.read(image, math.ceil(self.image_size / shorter))
            height, width = pixels.shape[1:]
            box = _random_box(width, height, self.resize, area, ratio, rng)
            pixels = self.scale(pixels, box, (self.image_size, self.image_size))
        if self.flip and rng.random() < 0.5:
            pixels = pixels.flip(-1)
        return _jitter(pixels, self.color_jitter, rng) if self.color_jitter > 0 else pixels


def _random_box(
    width: int, height: int, resize: str, area: float, ratio: float, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """A random box; `ratio` is width / height, with 'squash', 'enlarge' and 'longest' relative to the image's."""
    middle = math.sqrt(width * height)
    unit = (width, height) if resize in ("squash", "enlarge", "longest") else (middle, middle)
    box_width = min(width, max(1, round(unit[0] * math.sqrt(area * ratio))))
    box_height = min(height, max(1, round(unit[1] * math.sqrt(area / ratio))))
    left, top = rng.integers(width - box_width + 1), rng.integers(height - box_height + 1)
    return int(left), int(top), box_width, box_height


def _jitter(pixels: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    brightness, contrast, saturation = rng.uniform(1 - strength, 1 + strength, 3)
    values = pixels.float() * brightness
    grey = (values * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0, keepdim=True)
    values = grey + (values - grey) * saturation
    mean = grey.mean()
    return (mean + (values - mean) * contrast).round().clamp(0, 255).to(torch.uint8)


def transform_from_config(config: dict[str, Any]) -> EvalTransform:
    """The evaluation transform of a checkpoint."""
    return EvalTransform(**config)
