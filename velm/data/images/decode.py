"""Image files to upright RGB: any format that PIL reads, HEIC where pillow-heif is, with a fast path for plain JPEG.

A large JPEG is decoded at the smallest scale of the codec (1/2, 1/4, 1/8) that preserves the requested size. A plain
JPEG decoded at full scale goes through torchvision: both use libjpeg-turbo and give the same pixels, but PIL stores
them in four bytes each and copies them to three.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from velm import _compat
from velm.data.base import EncodedImage, no_image_message
from velm.data.images.grey import GreyRange, grey_range, is_deep, to_eight_bits
from velm.data.images.unidentified import explain, is_heic, register_heic, without_text
from velm.errors import DataError
from velm.util import describe_error

__all__ = ["read_image", "read_pixels", "read_range"]


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
    with _named_errors(image):
        return _upright(_bytes(image), minimum)


def read_pixels(image: Any, minimum: int | None = None) -> Tensor:
    """As `read_image`, as uint8 (3, H, W), channels last in memory."""
    if isinstance(image, np.ndarray | Image.Image):
        return _pixels(read_image(image))
    with _named_errors(image):
        encoded = _bytes(image)
        pixels = _plain_jpeg(encoded, minimum)
        return _pixels(_upright(encoded, minimum)) if pixels is None else pixels


def read_range(image: Any) -> GreyRange | None:
    """The range of a grey image of more than 8 bits per pixel (see `read_image`); None for every other image.

    Raises:
        DataError: the image cannot be read; the message names it and the cause.
    """
    if isinstance(image, np.ndarray):
        return None
    if isinstance(image, Image.Image):
        return grey_range(np.asarray(image)) if is_deep(image) else None
    with _named_errors(image):
        encoded = _bytes(image)
        with Image.open(io.BytesIO(without_text(encoded) or encoded)) as opened:
            return grey_range(np.asarray(opened)) if is_deep(opened) else None


@contextmanager
def _named_errors(image: Any) -> Iterator[None]:
    if not isinstance(image, str | os.PathLike | EncodedImage):
        raise DataError(f"An image is a path, a PIL image or a uint8 array, not {type(image).__name__}.")
    name = image.name if isinstance(image, EncodedImage) else os.fspath(image)
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(no_image_message(name)) from error
    except Exception as error:  # codecs fail in many ways: OSError, SyntaxError, struct.error, bombs ...
        raise DataError(f"Cannot read image {name!r}: {type(error).__name__}: {error}") from error


def _bytes(image: str | os.PathLike | EncodedImage) -> bytes:
    if isinstance(image, EncodedImage):
        return image.load()
    with open(image, "rb") as file:
        return file.read()


def _upright(encoded: bytes, minimum: int | None) -> Image.Image:
    """Raises UnidentifiedImageError with what the file is instead of the buffer's address, among others."""
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
            scale = _scale(opened.width, opened.height, minimum)
            if scale > 1:
                opened.draft(None, (opened.width // scale, opened.height // scale))
        return _to_rgb(ImageOps.exif_transpose(opened))


def _scale(width: int, height: int, minimum: int | None) -> int:
    """Divisor of the scale at which a JPEG is decoded."""
    if minimum is None:
        return 1
    return next((scale for scale in (8, 4, 2) if min(width, height) // scale >= minimum), 1)


def _plain_jpeg(encoded: bytes, minimum: int | None) -> Tensor | None:
    """uint8 (3, H, W); None unless it is an intact, upright colour JPEG to be decoded at full scale."""
    try:
        size = _plain_size(encoded)
        if size is None or _scale(*size, minimum) > 1 or not _torchvision_decodes():
            return None
        return _compat.decode_jpeg(encoded)
    except Exception:  # a damaged file or a rare variant: PIL decodes it or names the cause
        return None


@cache
def _torchvision_decodes() -> bool:
    """Whether torchvision can decode a JPEG; warns once per process if not."""
    sample = io.BytesIO()
    Image.new("RGB", (8, 8)).save(sample, "JPEG")
    try:
        _compat.decode_jpeg(sample.getvalue())
    except Exception as error:
        warnings.warn(
            f"torchvision cannot decode JPEG ({describe_error(error)}): PIL decodes all images, which takes about "
            f"twice as long. Install a torchvision that matches torch.",
            stacklevel=2,
        )
        return False
    return True


def _plain_size(encoded: bytes) -> tuple[int, int] | None:
    """(width, height) from the header of an upright 3-channel JPEG, else None; faster than `Image.open`."""
    position = 2 if encoded.startswith(b"\xff\xd8\xff") else len(encoded)
    while position < len(encoded) and encoded[position] == 0xFF:
        marker, length = encoded[position + 1], _two(encoded, position + 2)
        if marker in (0xC0, 0xC1, 0xC2):  # baseline, extended, progressive: bits, height, width, channels
            plain = encoded[position + 4] == 8 and encoded[position + 9] == 3
            return (_two(encoded, position + 7), _two(encoded, position + 5)) if plain else None
        if marker == 0xE1 and _may_be_rotated(encoded[position + 4 : position + 2 + length]):
            return None
        position += 2 + length
    return None


def _two(encoded: bytes, position: int) -> int:
    return encoded[position] << 8 | encoded[position + 1]


def _may_be_rotated(metadata: bytes) -> bool:
    """Whether EXIF sets another orientation, or XMP may do so."""
    if not metadata.startswith(b"Exif\0\0"):
        return b"Orientation" in metadata
    exif = Image.Exif()
    exif.load(metadata)
    return exif.get(ExifTags.Base.Orientation, 1) != 1


def _pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


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
