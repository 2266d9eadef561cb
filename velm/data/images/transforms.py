"""Images to uint8 tensors: decoding and geometry only.

Values stay uint8 until they are on the device, where the model normalises them: a quarter of the traffic between
processes.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from velm.data.images.decode import read_image, read_pixels

__all__ = ["EvalTransform", "Resize", "TrainTransform", "read_image", "transform_from_config"]

Resize = Literal["crop", "squash"]
RATIO = (3 / 4, 4 / 3)  # of a random crop's sides, as in Szegedy et al. 2015


def _resize(pixels: Tensor, box: tuple[int, int, int, int], size: int) -> Tensor:
    """The box (left, top, width, height) of uint8 (3, H, W) as uint8 (3, size, size), antialiased."""
    left, top, width, height = box
    part = pixels[None, :, top : top + height, left : left + width]
    if (height, width) != (size, size):
        # On uint8, channels last, torch is about twice as fast as PIL.
        part = functional.interpolate(part, (size, size), mode="bilinear", antialias=True)
    return part[0].contiguous()


def _check(image_size: int, resize: str) -> None:
    if image_size < 1:
        raise ValueError(f"image_size must be at least 1 pixel, got {image_size}.")
    if resize not in get_args(Resize):
        raise ValueError(f"resize must be one of {', '.join(get_args(Resize))}; got {resize!r}.")


class EvalTransform:
    """A deterministic square of the image.

    Args:
        image_size: side of the square, pixels.
        resize: 'crop': the largest central square; 'squash': the whole image, aspect ratio ignored.
    """

    def __init__(self, *, image_size: int, resize: Resize = "crop") -> None:
        _check(image_size, resize)
        self.image_size, self.resize = image_size, resize

    def __call__(self, image: Any, rng: np.random.Generator | None = None) -> Tensor:
        """An image (see `read_image`) as uint8 (3, image_size, image_size); `rng` is unused."""
        pixels = read_pixels(image, minimum=self.image_size)
        height, width = pixels.shape[1:]
        return _resize(pixels, _central_box(width, height, self.resize), self.image_size)

    def config(self) -> dict[str, Any]:
        """Options for `transform_from_config`; stored in the checkpoint."""
        return {"image_size": self.image_size, "resize": self.resize}


class TrainTransform:
    """A random square of the image.

    Args:
        image_size: side of the square, pixels.
        resize: as of `EvalTransform`; with 'squash' a random box keeps the image's own aspect ratio on
            average, with 'crop' it is square on average.
        crop_scale: smallest and largest fraction of the image's area in a random box, in (0, 1]; None: the box of
            `EvalTransform`.
        flip: mirror half of the images. Off by default: captions mention 'left' and 'right'.
        color_jitter: brightness, contrast and saturation are each multiplied by up to 1 -+ this; in [0, 1].
    """

    def __init__(
        self,
        *,
        image_size: int,
        resize: Resize = "crop",
        crop_scale: tuple[float, float] | None = (0.6, 1.0),
        flip: bool = False,
        color_jitter: float = 0.0,
    ) -> None:
        _check(image_size, resize)
        if crop_scale is not None and not 0 < crop_scale[0] <= crop_scale[1] <= 1:
            raise ValueError(f"crop_scale must be two numbers, 0 < smallest <= largest <= 1; got {crop_scale}.")
        if not 0 <= color_jitter <= 1:
            raise ValueError(f"color_jitter must be in [0, 1], got {color_jitter}.")
        self.image_size, self.resize, self.crop_scale = image_size, resize, crop_scale
        self.flip, self.color_jitter = flip, color_jitter

    def __call__(self, image: Any, rng: np.random.Generator) -> Tensor:
        """An image (see `read_image`) as uint8 (3, image_size, image_size), a function of it and of `rng`."""
        area, ratio = 1.0, 1.0
        if self.crop_scale is not None:
            area = rng.uniform(*self.crop_scale)
            ratio = math.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        shorter = min(1.0, math.sqrt(area * min(ratio, 1 / ratio)))  # the box's, of the image's
        pixels = read_pixels(image, minimum=math.ceil(self.image_size / shorter))
        height, width = pixels.shape[1:]
        if self.crop_scale is None:
            box = _central_box(width, height, self.resize)
        else:
            box = _random_box(width, height, self.resize, area, ratio, rng)
        pixels = _resize(pixels, box, self.image_size)
        if self.flip and rng.random() < 0.5:
            pixels = pixels.flip(-1)
        return _jitter(pixels, self.color_jitter, rng) if self.color_jitter > 0 else pixels


def _central_box(width: int, height: int, resize: str) -> tuple[int, int, int, int]:
    if resize == "squash":
        return 0, 0, width, height
    side = min(width, height)
    return (width - side) // 2, (height - side) // 2, side, side


def _random_box(
    width: int, height: int, resize: str, area: float, ratio: float, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """A random box; `ratio` is width / height in pixels ('crop') or relative to the image's ('squash')."""
    middle = math.sqrt(width * height)
    unit = (middle, middle) if resize == "crop" else (width, height)
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
