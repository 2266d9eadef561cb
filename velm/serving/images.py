"""Images of a request: data URLs to pixels, refused by their header before anything is decoded."""

from __future__ import annotations

import base64
import binascii
import io
import re
from typing import TYPE_CHECKING

from PIL import Image

from velm.data.base import EncodedImage
from velm.data.images.decode import named_errors, read_image, upright
from velm.errors import DataError, RequestError

if TYPE_CHECKING:
    from torch import Tensor

    from velm.data.images.transforms import EvalTransform

__all__ = ["FORMATS", "check_header", "content_of", "opened_of", "pixels_of", "thumbnail"]

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""What is decoded of a client; Pillow reads more, some by calling other programs."""
THUMBNAIL = 256  # pixels of the longer side
_DATA_URL = re.compile(r"data:image/[\w.+-]{1,40};base64,", re.ASCII | re.IGNORECASE)


def content_of(url: str, param: str) -> bytes:
    """The file of an image in a data URL.

    Args:
        param: the field of the request, named in messages.

    Raises:
        RequestError: it is a URL to fetch, an SVG, or not base64.
    """
    head = _DATA_URL.match(url)
    if head is None:
        scheme = re.match(r"[a-zA-Z][a-zA-Z0-9+.-]{0,20}(?=:)", url)
        what = f"a URL of the scheme {scheme[0].lower()!r}" if scheme else f"no URL: {url[:20]!r}"
        if scheme and scheme[0].lower() == "data":
            what = f"a data URL that begins with {url[:40]!r}"
        raise RequestError(
            f"{param} is {what}. The server fetches nothing: send the file itself, 'data:image/jpeg;base64,...'.",
            param=param,
        )
    if "svg" in head[0].lower():
        raise RequestError(f"{param} is an SVG, which is not rendered; send one of {', '.join(FORMATS)}.", param=param)
    try:
        return base64.b64decode(url[head.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(f"{param} is not base64: {error}.", param=param) from error


def check_header(content: bytes, param: str, max_pixels: int) -> None:
    """Refuse an image of another format or of too many pixels; only its header is read.

    Raises:
        RequestError: 413, it has more pixels than `max_pixels`; 400, it is no image of `FORMATS`.
    """
    try:
        with named_errors(EncodedImage(param, lambda: content)):
            opened = Image.open(io.BytesIO(content), formats=FORMATS)
        width, height = opened.size
    except DataError as error:
        if isinstance(error.__cause__, Image.DecompressionBombError):
            raise RequestError(f"{param} has more than {max_pixels} pixels, the limit.", 413, param=param) from error
        raise RequestError(
            f"{param} is no image of {', '.join(FORMATS)}, or its header is damaged.", param=param
        ) from error
    if width * height > max_pixels:
        raise RequestError(
            f"{param} has {width} x {height} = {width * height} pixels; the limit is {max_pixels}. Send a smaller one.",
            413,
            param=param,
        )


def pixels_of(url: str, param: str, transform: EvalTransform, max_pixels: int) -> Tensor:
    """An image in a data URL as uint8 (3, S, S), the input of the model.

    Raises:
        RequestError: the image cannot be used; the message names the field and the cause.
    """
    content = content_of(url, param)
    check_header(content, param, max_pixels)
    try:
        return transform(EncodedImage(param, lambda: content))
    except DataError as error:
        raise RequestError(str(error), param=param) from error


def opened_of(url: str, param: str, transform: EvalTransform, max_pixels: int) -> Image.Image:
    """As `pixels_of`, before it is resized."""
    content = content_of(url, param)
    check_header(content, param, max_pixels)
    try:
        least = None if transform.decode == "full" else transform.image_size
        return read_image(EncodedImage(param, lambda: content), least)
    except DataError as error:
        raise RequestError(str(error), param=param) from error


def thumbnail(path: str, max_pixels: int) -> bytes:
    """A JPEG of an image file, at most `THUMBNAIL` pixels long.

    Raises:
        RequestError: 404, the file cannot be read (the message does not name it).
    """
    try:
        with open(path, "rb") as file:
            content = file.read()
        check_header(content, "the image", max_pixels)
        image = upright(content, THUMBNAIL)
    except Exception as error:
        raise RequestError(
            f"The file of this image cannot be shown: {type(error).__name__}.", 404, kind="not_found"
        ) from error
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    target = io.BytesIO()
    image.save(target, "JPEG", quality=85)
    return target.getvalue()
