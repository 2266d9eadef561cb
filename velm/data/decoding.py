"""Picture files to upright RGB: every kind of file that PIL reads, and plain JPEG faster than PIL does.

A big JPEG is decoded at the smallest of the codec's scales (a half, a quarter, an eighth) that still holds every pixel
asked for. A plain one that is decoded whole goes through torchvision, whose codec is the same libjpeg-turbo and whose
pixels are the same; PIL keeps them four bytes wide and copies them to three. Whatever torchvision refuses PIL reads, or
says what is wrong with it.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageFile, ImageOps
from torch import Tensor

from velm.data.base import DataError, EncodedImage

__all__ = ["read_image", "read_pixels"]


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
    with _opened(image) as opened:
        return _upright(opened, minimum)


def read_pixels(image: Any, minimum: int | None = None) -> Tensor:
    """The same picture as `read_image`'s as uint8 (3, H, W), channels last in memory."""
    if isinstance(image, np.ndarray | Image.Image):
        return _pixels(read_image(image))
    with _opened(image) as opened:
        pixels = _plain_jpeg(opened) if _scale(opened, minimum) == 1 else None
        return _pixels(_upright(opened, minimum)) if pixels is None else pixels


@contextmanager
def _opened(image: Any) -> Iterator[ImageFile.ImageFile]:
    """The file of a picture, its header read; faults are named, those of decoding too."""
    if not isinstance(image, str | os.PathLike | EncodedImage):
        raise DataError(f"A picture is a path, a PIL image or a uint8 array, not {type(image).__name__}.")
    name = image.name if isinstance(image, EncodedImage) else os.fspath(image)
    try:
        with Image.open(io.BytesIO(image.load()) if isinstance(image, EncodedImage) else image) as opened:
            yield opened
    except FileNotFoundError as error:
        raise DataError(f"There is no picture {name!r}.") from error
    except Exception as error:  # codecs fail in many ways: OSError, SyntaxError, struct.error, bombs ...
        raise DataError(f"Cannot read picture {name!r}: {type(error).__name__}: {error}") from error


def _scale(opened: ImageFile.ImageFile, minimum: int | None) -> int:
    """How many times smaller a file is decoded: 1, 2, 4 or 8."""
    if minimum is None or opened.format != "JPEG":
        return 1
    return next((scale for scale in (8, 4, 2) if min(opened.size) // scale >= minimum), 1)


def _plain_jpeg(opened: ImageFile.ImageFile) -> Tensor | None:
    """uint8 (3, H, W); None where it is not a whole colour JPEG that lies upright."""
    if opened.format != "JPEG" or opened.mode != "RGB" or opened.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        return None
    assert opened.fp is not None  # it has only just been opened
    opened.fp.seek(0)
    encoded = torch.frombuffer(bytearray(opened.fp.read()), dtype=torch.uint8)
    try:
        from torchvision.io import ImageReadMode, decode_jpeg  # a second, which other pictures need not wait for

        return decode_jpeg(encoded, ImageReadMode.RGB)
    except Exception:  # a broken file, a rare kind of JPEG, a torchvision without the codec (deprecated since 0.29)
        return None


def _upright(opened: ImageFile.ImageFile, minimum: int | None) -> Image.Image:
    scale = _scale(opened, minimum)
    if scale > 1:
        opened.draft(None, (opened.width // scale, opened.height // scale))
    return _to_rgb(ImageOps.exif_transpose(opened))


def _pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


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
