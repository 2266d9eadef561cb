"""Image files to upright RGB: any format that PIL reads, HEIC where pillow-heif is. Nothing here imports torch.

A large JPEG is decoded at the smallest scale of the codec (1/2, 1/4, 1/8) that preserves the requested size.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from velm.data.base import EncodedImage, no_image_message
from velm.data.images.grey import GreyRange, grey_range, is_deep, to_eight_bits
from velm.data.images.unidentified import explain, is_heic, register_heic, without_text
from velm.errors import DataError

__all__ = ["jpeg_scale", "named_errors", "read_bytes", "read_image", "read_range", "upright"]


def read_image(image: Any, minimum: int | None = None) -> Image.Image:
    """An upright RGB image.

    Transparency is blended with white, EXIF orientation is applied, and grey of more than 8 bits is scaled by the range
    that the image holds (`velm.data.images.grey.to_eight_bits`).

    Args:
        image: a path, an `EncodedImage`, a PIL image, or a uint8 array (H, W), (H, W, 3) or (H, W, 4).
        minimum: pixels that the shorter side must retain if a JPEG is decoded at a smaller scale. None: full scale.

    Raises:
        DataError: the image cannot be read; the message names it and the cause.
    """
    if isinstance(image, np.ndarray):
        return _to_rgb(_from_array(image))
    if isinstance(image, Image.Image):
        return _to_rgb(ImageOps.exif_transpose(image))
    with named_errors(image):
        return upright(read_bytes(image), minimum)


def read_range(image: Any) -> GreyRange | None:
    """The range of a grey image of more than 8 bits per pixel (see `read_image`); None for every other image.

    Raises:
        DataError: the image cannot be read; the message names it and the cause.
    """
    if isinstance(image, np.ndarray):
        return None
    if isinstance(image, Image.Image):
        return grey_range(np.asarray(image)) if is_deep(image) else None
    with named_errors(image):
        encoded = read_bytes(image)
        with Image.open(io.BytesIO(without_text(encoded) or encoded)) as opened:
            return grey_range(np.asarray(opened)) if is_deep(opened) else None


@contextmanager
def named_errors(image: Any) -> Iterator[None]:
    """Turn every error of reading `image` into a DataError that names it."""
    if not isinstance(image, str | os.PathLike | EncodedImage):
        raise DataError(f"An image is a path, a PIL image or a uint8 array, not {type(image).__name__}.")
    name = image.name if isinstance(image, EncodedImage) else os.fspath(image)
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(no_image_message(name)) from error
    except Exception as error:  # codecs fail in many ways: OSError, SyntaxError, struct.error, bombs ...
        raise DataError(f"Cannot read image {name!r}: {type(error).__name__}: {error}") from error


def read_bytes(image: str | os.PathLike | EncodedImage) -> bytes:
    """The content of an image's file."""
    if isinstance(image, EncodedImage):
        return image.load()
    with open(image, "rb") as file:
        return file.read()


def upright(encoded: bytes, minimum: int | None) -> Image.Image:
    """As `read_image`, of a file's content.

    Raises UnidentifiedImageError with what the file is instead of the buffer's address, among others.
    """
    try:
        return _decode(encoded, minimum)
    except UnidentifiedImageError:
        if is_heic(encoded) and register_heic():
            with suppress(UnidentifiedImageError):
                return _decode(encoded, minimum)
        reason = explain(encoded)
        message = f"cannot identify image file{f': {reason}' if reason else ''}"
        raise UnidentifiedImageError(message) from None
    except ValueError:  # more text in a PNG than Pillow's MAX_TEXT_CHUNK, a setting of the whole process
        plain = without_text(encoded)
        if plain is None:
            raise
        return _decode(plain, minimum)


def _decode(encoded: bytes, minimum: int | None) -> Image.Image:
    with Image.open(io.BytesIO(encoded)) as opened:
        if minimum is not None and opened.format == "JPEG":
            scale = jpeg_scale(opened.width, opened.height, minimum)
            if scale > 1:
                opened.draft(None, (opened.width // scale, opened.height // scale))
        return _to_rgb(ImageOps.exif_transpose(opened))


def jpeg_scale(width: int, height: int, minimum: int | None) -> int:
    """Divisor of the scale at which a JPEG is decoded."""
    if minimum is None:
        return 1
    return next((scale for scale in (8, 4, 2) if min(width, height) // scale >= minimum), 1)


def _from_array(array: np.ndarray) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise DataError(
            f"An image array must be uint8 of shape (H, W), (H, W, 3) or (H, W, 4); got {array.dtype} {array.shape}."
        )
    return Image.fromarray(array)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        image.load()
        return image
    if is_deep(image):  # PIL's own conversion would clip at 255
        return to_eight_bits(image).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
