"""Image files to upright RGB: every kind of file that PIL reads, and plain JPEG faster than PIL does.

A big JPEG is decoded at the smallest of the codec's scales (a half, a quarter, an eighth) that still holds every pixel
asked for. A plain one that is decoded whole goes through torchvision: the codec is libjpeg-turbo in both and the pixels
are the same, but PIL keeps them four bytes wide and copies them to three.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from velm.data.base import EncodedImage, no_image_message
from velm.errors import DataError

__all__ = ["read_image", "read_pixels"]

RGB = 3  # torchvision's ImageReadMode.RGB


def read_image(image: Any, minimum: int | None = None) -> Image.Image:
    """An upright RGB image.

    Transparent parts become white, 16-bit values keep their high byte, EXIF rotation is carried out.

    Args:
        image: a path, an `EncodedImage`, a PIL image, or a uint8 array (H, W), (H, W, 3) or (H, W, 4).
        minimum: pixels that the shorter side must keep; a JPEG may be decoded smaller down to it. None
            decodes every pixel.

    Raises:
        DataError: the image cannot be read; the message names it and the cause.
    """
    if isinstance(image, np.ndarray):
        return _to_rgb(_from_array(image))
    if isinstance(image, Image.Image):
        return _to_rgb(ImageOps.exif_transpose(image))
    with _faults_named(image):
        return _upright(_bytes(image), minimum)


def read_pixels(image: Any, minimum: int) -> Tensor:
    """The same image as `read_image`'s as uint8 (3, H, W), channels last in memory."""
    if isinstance(image, np.ndarray | Image.Image):
        return _pixels(read_image(image))
    with _faults_named(image):
        encoded = _bytes(image)
        pixels = _plain_jpeg(encoded, minimum)
        return _pixels(_upright(encoded, minimum)) if pixels is None else pixels


@contextmanager
def _faults_named(image: Any) -> Iterator[None]:
    if not isinstance(image, str | os.PathLike | EncodedImage):
        raise DataError(f"An image is a path, a PIL image or a uint8 array, not {type(image).__name__}.")
    name = image.name if isinstance(image, EncodedImage) else os.fspath(image)
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(no_image_message(name)) from error
    except UnidentifiedImageError as error:  # its own words name the buffer's address
        raise DataError(f"Cannot read image {name!r}: UnidentifiedImageError: cannot identify image file") from error
    except Exception as error:  # codecs fail in many ways: OSError, SyntaxError, struct.error, bombs ...
        raise DataError(f"Cannot read image {name!r}: {type(error).__name__}: {error}") from error


def _bytes(image: str | os.PathLike | EncodedImage) -> bytes:
    if isinstance(image, EncodedImage):
        return image.load()
    with open(image, "rb") as file:
        return file.read()


def _upright(encoded: bytes, minimum: int | None) -> Image.Image:
    with Image.open(io.BytesIO(encoded)) as opened:
        if minimum is not None and opened.format == "JPEG":
            scale = _scale(opened.width, opened.height, minimum)
            if scale > 1:
                opened.draft(None, (opened.width // scale, opened.height // scale))
        return _to_rgb(ImageOps.exif_transpose(opened))


def _scale(width: int, height: int, minimum: int) -> int:
    """How many times smaller a JPEG is decoded."""
    return next((scale for scale in (8, 4, 2) if min(width, height) // scale >= minimum), 1)


def _plain_jpeg(encoded: bytes, minimum: int) -> Tensor | None:
    """uint8 (3, H, W); None where it is anything but a sound colour JPEG that lies upright and is decoded whole."""
    try:
        size = _plain_size(encoded)
        if size is None or _scale(*size, minimum) > 1:
            return None
        import torchvision.io  # noqa: F401 - brings the operator; a second, which other images need not wait for

        # The operator itself: the function around it warns at every image that it will go one day.
        return torch.ops.image.decode_jpeg(torch.frombuffer(bytearray(encoded), dtype=torch.uint8), RGB, False)
    except Exception:  # a broken file, a rare kind of JPEG, a torchvision without the codec
        return None


def _plain_size(encoded: bytes) -> tuple[int, int] | None:
    """(width, height) by the header of a JPEG of three colours that lies upright; PIL takes longer for it."""
    place = 2 if encoded.startswith(b"\xff\xd8\xff") else len(encoded)
    while place < len(encoded) and encoded[place] == 0xFF:
        marker, length = encoded[place + 1], _two(encoded, place + 2)
        if marker in (0xC0, 0xC1, 0xC2):  # baseline, extended, progressive: bits, height, width, colours
            plain = encoded[place + 4] == 8 and encoded[place + 9] == 3
            return (_two(encoded, place + 7), _two(encoded, place + 5)) if plain else None
        if marker == 0xE1 and _turned(encoded[place + 4 : place + 2 + length]):
            return None
        place += 2 + length
    return None


def _two(encoded: bytes, place: int) -> int:
    return encoded[place] << 8 | encoded[place + 1]


def _turned(metadata: bytes) -> bool:
    """Whether EXIF, or XMP for all we know, asks for another orientation."""
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
    if image.mode.startswith("I"):  # 16-bit grey; PIL's own conversion would clip at 255
        values = np.asarray(image).astype(np.int64)
        values = values >> 8 if values.max(initial=0) > 255 else values
        return Image.fromarray(values.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
