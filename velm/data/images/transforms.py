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

from velm._compat import has_lanczos
from velm.data.images.decode import read_image, read_pixels

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

Resize = Literal["crop", "squash", "shortest", "longest", "enlarge"]
Interpolation = Literal["bilinear", "bicubic", "lanczos"]
Decode = Literal["scaled", "full"]
CropRounding = Literal["down", "even"]
RATIO = (3 / 4, 4 / 3)  # of a random crop's sides, as in Szegedy et al. 2015


class Geometry:
    """How an image becomes a square; the options that a checkpoint stores.

    Args:
        image_size: side of the square, pixels.
        resize: 'crop': the largest central square, resized; 'squash': the whole image, aspect ratio ignored;
            'shortest': the shorter side is resized to `image_size`, then the centre is cropped (CLIP); 'longest': the
            longer side is, and black fills the square; 'enlarge': the longer side is resized to four times
            `image_size`, then the whole is squashed (Idefics3 and SmolVLM without tiles).
        interpolation: bilinear, bicubic or lanczos, all antialiased.
        decode: 'scaled': a large JPEG is decoded at the smallest scale that is large enough, which is faster; 'full':
            at full size, as most other libraries do.
        crop_rounding: of half a pixel where 'shortest' crops: 'down' (transformers) or to an 'even' number
            (torchvision, open_clip).
    """

    def __init__(
        self,
        *,
        image_size: int,
        resize: Resize = "crop",
        interpolation: Interpolation = "bilinear",
        decode: Decode = "scaled",
        crop_rounding: CropRounding = "down",
    ) -> None:
        if image_size < 1:
            raise ValueError(f"image_size must be at least 1 pixel, got {image_size}.")
        choices: dict[str, tuple[str, Any]] = {
            "resize": (resize, Resize), "interpolation": (interpolation, Interpolation), "decode": (decode, Decode),
            "crop_rounding": (crop_rounding, CropRounding),
        }  # fmt: skip
        for name, (value, allowed) in choices.items():
            if value not in get_args(allowed):
                raise ValueError(f"{name} must be one of {', '.join(get_args(allowed))}; got {value!r}.")
        if interpolation == "lanczos" and not has_lanczos():
            raise ValueError(f"interpolation lanczos needs a newer torch than {torch.__version__}; take bicubic.")
        self.image_size: int = image_size
        self.resize: Resize = resize
        self.interpolation: Interpolation = interpolation
        self.decode: Decode = decode
        self.crop_rounding: CropRounding = crop_rounding

    def config(self) -> dict[str, Any]:
        """Options for `transform_from_config`; stored in the checkpoint. Defaults of the later ones are left out."""
        later = {"interpolation": "bilinear", "decode": "scaled", "crop_rounding": "down"}
        changed = {name: getattr(self, name) for name, default in later.items() if getattr(self, name) != default}
        return {"image_size": self.image_size, "resize": self.resize, **changed}

    def read(self, image: Any, minimum: int) -> Tensor:
        """uint8 (3, H, W) of an image; its shorter side has at least `minimum` pixels if the file's has."""
        return read_pixels(image, minimum=minimum if self.decode == "scaled" else None)

    def square(self, pixels: Tensor) -> Tensor:
        """uint8 (3, H, W) as uint8 (3, image_size, image_size)."""
        height, width = pixels.shape[1:]
        size = self.image_size
        if self.resize == "squash":
            return self.scale(pixels, (0, 0, width, height), (size, size))
        if self.resize == "enlarge":
            rows, columns = _even_sides(height, width, 4 * size)
            larger = self.scale(pixels, (0, 0, width, height), (rows, columns))
            return self.scale(larger, (0, 0, columns, rows), (size, size))
        if self.resize == "crop":
            side = min(width, height)
            return self.scale(pixels, ((width - side) // 2, (height - side) // 2, side, side), (size, size))
        short, long = sorted((width, height))
        whole = (0, 0, width, height)
        if self.resize == "shortest":
            longer = int(size * long / short)
            rows, columns = (longer, size) if height > width else (size, longer)
            resized = self.scale(pixels, whole, (rows, columns))
            half = round if self.crop_rounding == "even" else int
            top, left = half((rows - size) / 2), half((columns - size) / 2)
            return resized[:, top : top + size, left : left + size].contiguous()
        shorter = max(1, round(size * short / long))
        rows, columns = (size, shorter) if height > width else (shorter, size)
        square = pixels.new_zeros(3, size, size)
        top, left = (size - rows) // 2, (size - columns) // 2
        square[:, top : top + rows, left : left + columns] = self.scale(pixels, whole, (rows, columns))
        return square

    def scale(self, pixels: Tensor, box: tuple[int, int, int, int], size: tuple[int, int]) -> Tensor:
        """The box (left, top, width, height) of uint8 (3, H, W) as uint8 (3, *size), antialiased."""
        left, top, width, height = box
        part = pixels[None, :, top : top + height, left : left + width]
        if (height, width) != size:
            # On uint8, channels last, torch is about twice as fast as PIL.
            part = functional.interpolate(part, size, mode=self.interpolation, antialias=True)
        return part[0].contiguous()


class EvalTransform(Geometry):
    """A deterministic square of the image; see `Geometry` for its options."""

    def __call__(self, image: Any, rng: np.random.Generator | None = None) -> Tensor:
        """An image (see `read_image`) as uint8 (3, image_size, image_size); `rng` is unused."""
        return self.square(self.read(image, self.image_size))


class TrainTransform(Geometry):
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


def _even_sides(height: int, width: int, longer: int) -> tuple[int, int]:
    """The longer side resized to `longer`, the other in proportion and even, as Idefics3's processor rounds it."""
    ratio = width / height
    shorter = int(longer / ratio) if width >= height else int(longer * ratio)
    shorter += shorter % 2
    return (max(shorter, 1), longer) if width >= height else (longer, max(shorter, 1))


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
