"""What images are known by without decoding them: enough to see that another has taken one's place."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from typing import Any

import numpy as np

from velm.data.base import EncodedImage

__all__ = ["fingerprint"]


def fingerprint(images: Iterable[Any]) -> str:
    """A hash of images in their order, as 64 hexadecimal digits.

    A file counts by its path, size and time of change; an image inside a file by its place in it and by that file; an
    array or a PIL image by its pixels.

    Args:
        images: as a `Record` has them, None where there is no image.
    """
    digest = hashlib.sha256()
    shards: dict[str, bytes] = {}
    for image in images:
        for part in _identity(image, shards):
            digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def _identity(image: Any, shards: dict[str, bytes]) -> list[bytes]:
    if image is None:
        return [b"none"]
    if isinstance(image, str | os.PathLike):
        return [b"file", _file(os.fspath(image))]
    if isinstance(image, EncodedImage):
        return [b"encoded", image.name.encode(), *_place(image, shards)]
    pixels = np.asarray(image)
    return [b"pixels", str((pixels.shape, pixels.dtype, getattr(image, "mode", ""))).encode(), pixels.tobytes()]


def _place(image: EncodedImage, shards: dict[str, bytes]) -> list[bytes]:
    """Where its bytes lie, by the names and numbers that its loader holds; the bytes themselves where it holds none."""
    held = getattr(image.load, "__dict__", {})
    known = {name: value for name, value in sorted(held.items()) if isinstance(value, str | int)}
    if not known:
        return [image.load()]
    named = [value for value in known.values() if isinstance(value, str)]
    for name in named:
        if name not in shards:  # thousands of images lie in one file, which is looked at once
            shards[name] = _file(name)
    return [repr(known).encode(), *(shards[name] for name in named)]


def _file(path: str) -> bytes:
    try:
        found = os.stat(path)
    except OSError:
        return f"{os.path.abspath(path)} is not there".encode()
    return f"{os.path.abspath(path)} {found.st_size} {found.st_mtime_ns}".encode()
