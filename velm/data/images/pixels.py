"""Image files to uint8 tensors, with a fast path for plain JPEG.

A plain JPEG decoded at full scale goes through torchvision: both use libjpeg-turbo and give the same pixels, but PIL
stores them in four bytes each and copies them to three.
"""

from __future__ import annotations

import io
import warnings
from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor

from velm import _compat
from velm.data.images.decode import jpeg_scale, named_errors, read_bytes, read_image, upright
from velm.util import describe_error

__all__ = ["read_pixels"]


def read_pixels(image: Any, minimum: int | None = None) -> Tensor:
    """As `read_image`, as uint8 (3, H, W), channels last in memory."""
    if isinstance(image, np.ndarray | Image.Image):
        return _pixels(read_image(image))
    with named_errors(image):
        encoded = read_bytes(image)
        pixels = _plain_jpeg(encoded, minimum)
        return _pixels(upright(encoded, minimum)) if pixels is None else pixels


def _plain_jpeg(encoded: bytes, minimum: int | None) -> Tensor | None:
    """uint8 (3, H, W); None unless it is an intact, upright colour JPEG to be decoded at full scale."""
    try:
        size = _plain_size(encoded)
        if size is None or jpeg_scale(*size, minimum) > 1 or not _torchvision_decodes():
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
