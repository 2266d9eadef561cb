"""Pictures to uint8 tensors: decoding and geometry only.

Values stay bytes until they are on the device, where the model normalises them: a quarter of the traffic
between processes. A big JPEG is decoded at the smallest of the codec's scales (a half, a quarter, an eighth)
that still holds every pixel asked for.
"""

from __future__ import annotations

import io
import math
import os
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional

from velm.data.base import DataError, EncodedImage, no_picture

__all__ = ["EvalTransform", "Resize", "TrainTransform", "read_image", "transform_from_config"]

Resize = Literal["crop", "squash"]
RATIO = (3 / 4, 4 / 3)  # of a random crop's sides, as in Szegedy et al. 2015


def read_image(image: Any, minimum: int | None = None) -> Image.Image:
    """An upright RGB picture.

    Transparent parts become white, 16-bit values keep their high byte, EXIF rotation is carried out.

    Args:
        image: a path, an `EncodedImage`, a PIL image, or a uint8 array (H, W), (H, W, 3) or (H, W, 4).
        minimum: pixels that the shorter side must keep; a JPEG may be decoded smaller down to it. None
            decodes every pixel.

    Raises:
        DataError: the picture cannot be read; the message names it and the cause.
    """
    if isinstance(image, np.ndarray):
        return _to_rgb(_from_array(image))
    if isinstance(image, Image.Image):
        return _to_rgb(ImageOps.exif_transpose(image))
    if not isinstance(image, str | os.PathLike | EncodedImage):
        raise DataError(f"A picture is a path, a PIL image or a uint8 array, not {type(image).__name__}.")
    name = image.name if isinstance(image, EncodedImage) else os.fspath(image)
    try:
        with Image.open(io.BytesIO(image.load()) if isinstance(image, EncodedImage) else image) as opened:
            if minimum is not None and opened.format == "JPEG":
                shorter = min(opened.size)
                scale = next((s for s in (8, 4, 2) if shorter // s >= minimum), 1)
                opened.draft(None, (opened.width // scale, opened.height // scale))
            return _to_rgb(ImageOps.exif_transpose(opened))
    except FileNotFoundError as error:
        raise DataError(no_picture(name)) from error
    except Exception as error:  # codecs fail in many ways: OSError, SyntaxError, struct.error, bombs ...
        raise DataError(f"Cannot read picture {name!r}: {type(error).__name__}: {error}") from error


def _from_array(array: np.ndarray) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise DataError(
            f"A picture array must be uint8 of shape (H, W), (H, W, 3) or (H, W, 4); got {array.dtype} {array.shape}."
        )
    return Image.fromarray(array)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        image.load()
        return image
    if image.mode.startswith("I"):  # 16-bit grey; PIL's own conversion would clip at 255
        values = np.asarray(image).astype(np.int64)
        values = values >> 8 if values.max(initial=0) > 255 else values
        return Image.fromarray(values.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _resized(image: Image.Image, box: tuple[int, int, int, int], size: int) -> Tensor:
    """The box (left, top, width, height, pixels) of a picture as uint8 (3, size, size), antialiased."""
    left, top, width, height = box
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None, :, top : top + height, left : left + width]
    if (height, width) != (size, size):
        # On uint8, channels last, torch is about twice as fast as PIL.
        pixels = functional.interpolate(pixels, (size, size), mode="bilinear", antialias=True)
    return pixels[0].contiguous()


def _check(image_size: int, resize: str) -> None:
    if image_size < 1:
        raise ValueError(f"image_size must be at least 1 pixel, got {image_size}.")
    if resize not in get_args(Resize):
        raise ValueError(f"resize must be one of {', '.join(get_args(Resize))}; got {resize!r}.")


class EvalTransform:
    """The same square for the same picture, always.

    Args:
        image_size: side of the square, pixels.
        resize: 'crop' keeps the aspect ratio and takes the largest square in the middle; 'squash' keeps the
            whole picture and squeezes it.
    """

    def __init__(self, *, image_size: int, resize: Resize = "crop") -> None:
        _check(image_size, resize)
        self.image_size, self.resize = image_size, resize

    def __call__(self, image: Any, rng: np.random.Generator | None = None) -> Tensor:
        """A picture (see `read_image`) as uint8 (3, image_size, image_size); `rng` changes nothing."""
        picture = read_image(image, minimum=self.image_size)
        return _resized(picture, _whole(picture.width, picture.height, self.resize), self.image_size)

    def config(self) -> dict[str, Any]:
        """What `transform_from_config` needs; goes into the checkpoint."""
        return {"image_size": self.image_size, "resize": self.resize}


class TrainTransform:
    """A square of the picture that differs with the random generator it is given.

    Args:
        image_size: side of the square, pixels.
        resize: as of `EvalTransform`; with 'squash' a random box keeps the picture's own aspect ratio on
            average, with 'crop' it is square on average.
        crop_scale: smallest and largest part of the picture's area in a random box, in (0, 1]; None takes what
            `EvalTransform` takes.
        flip: mirror half of the pictures. Off by default: captions say 'left' and 'right'.
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
        """A picture (see `read_image`) as uint8 (3, image_size, image_size), a function of it and of `rng`."""
        area, ratio = 1.0, 1.0
        if self.crop_scale is not None:
            area = rng.uniform(*self.crop_scale)
            ratio = math.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        shorter = min(1.0, math.sqrt(area * min(ratio, 1 / ratio)))  # the box's, of the picture's
        picture = read_image(image, minimum=math.ceil(self.image_size / shorter))
        if self.crop_scale is None:
            box = _whole(picture.width, picture.height, self.resize)
        else:
            box = _random_box(picture.width, picture.height, self.resize, area, ratio, rng)
        pixels = _resized(picture, box, self.image_size)
        if self.flip and rng.random() < 0.5:
            pixels = pixels.flip(-1)
        return _jittered(pixels, self.color_jitter, rng) if self.color_jitter > 0 else pixels


def _whole(width: int, height: int, resize: str) -> tuple[int, int, int, int]:
    if resize == "squash":
        return 0, 0, width, height
    side = min(width, height)
    return (width - side) // 2, (height - side) // 2, side, side


def _random_box(
    width: int, height: int, resize: str, area: float, ratio: float, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """A box of a part of the area; `ratio` is of its sides in pixels, or relative to the picture's ('squash')."""
    middle = math.sqrt(width * height)
    unit = (middle, middle) if resize == "crop" else (width, height)
    box_width = min(width, max(1, round(unit[0] * math.sqrt(area * ratio))))
    box_height = min(height, max(1, round(unit[1] * math.sqrt(area / ratio))))
    left, top = rng.integers(width - box_width + 1), rng.integers(height - box_height + 1)
    return int(left), int(top), box_width, box_height


def _jittered(pixels: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    brightness, contrast, saturation = rng.uniform(1 - strength, 1 + strength, 3)
    values = pixels.float() * brightness
    grey = (values * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0, keepdim=True)
    values = grey + (values - grey) * saturation
    mean = grey.mean()
    return (mean + (values - mean) * contrast).round().clamp(0, 255).to(torch.uint8)


def transform_from_config(config: dict[str, Any]) -> EvalTransform:
    """The transform that a checkpoint's pictures were validated with."""
    return EvalTransform(**config)
