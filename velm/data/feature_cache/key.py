"""The name of a feature cache: a hash of the encoder, the images and everything else its numbers depend on."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from velm.data.base import EncodedImage
from velm.version import __version__

__all__ = ["FORMAT", "cache_key", "describe", "fingerprint_images", "weights_digest"]

FORMAT = 1
"""Version of the file layout; increased when older files would be misread."""


def cache_key(description: dict[str, Any], positions: bool) -> str:
    """32 hexadecimal digits.

    Args:
        description: of `describe`.
        positions: whether the cache has one vector per position, or pooled vectors only.
    """
    text = json.dumps({**description, "positions": positions}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def describe(
    encoder: Any, encoder_config: Any, precision: str, *, transform: dict[str, Any], images: str
) -> dict[str, Any]:
    """Everything that a split's features depend on, as plain Python.

    Args:
        encoder: image encoder with the weights to be used.
        encoder_config: its part config.
        precision: of the Trainer.
        transform: config of the image transform.
        images: `fingerprint_images` of the split.
    """
    return {
        "format": FORMAT,
        "encoder": encoder_config,
        "code": _code(type(encoder)),
        "weights": weights_digest(encoder),
        "normalisation": [list(encoder.image_mean), list(encoder.image_std)],
        "transform": transform,
        "images": images,
        "precision": precision,
    }


def _code(cls: type) -> list[str]:
    """The class, a hash of its source file, and the versions of VELM and torch."""
    try:
        content = Path(inspect.getfile(cls)).read_bytes()
    except (TypeError, OSError):  # defined in a notebook
        content = b""
    return [f"{cls.__module__}:{cls.__qualname__}", hashlib.sha256(content).hexdigest(), __version__, torch.__version__]


def weights_digest(encoder: nn.Module) -> str:
    """SHA-256 of the state dict, buffers included."""
    digest = hashlib.sha256()
    for name, value in sorted(encoder.state_dict().items()):
        digest.update(name.encode())
        if isinstance(value, Tensor):
            digest.update(f"{value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        else:
            digest.update(repr(value).encode())
    return digest.hexdigest()


def fingerprint_images(images: Iterable[Any]) -> str:
    """SHA-256 of images in order, without decoding them.

    A file is identified by path, size and modification time; an image inside a file by its position and that file; an
    array or a PIL image by its pixels.

    Args:
        images: as in `Record.image`; None for a record without an image.
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
        return [b"encoded", image.name.encode(), *_location(image, shards)]
    pixels = np.asarray(image)
    return [b"pixels", str((pixels.shape, pixels.dtype, getattr(image, "mode", ""))).encode(), pixels.tobytes()]


def _location(image: EncodedImage, shards: dict[str, bytes]) -> list[bytes]:
    """Path, offset and the like from the loader's str and int attributes; the image's bytes if it has none."""
    attributes = getattr(image.load, "__dict__", {})
    known = {name: value for name, value in sorted(attributes.items()) if isinstance(value, str | int)}
    if not known:
        return [image.load()]
    named = [value for value in known.values() if isinstance(value, str)]
    for name in named:
        if name not in shards:  # thousands of images share one file
            shards[name] = _file(name)
    return [repr(known).encode(), *(shards[name] for name in named)]


def _file(path: str) -> bytes:
    try:
        status = os.stat(path)
    except OSError:
        return f"{os.path.abspath(path)} is not there".encode()
    return f"{os.path.abspath(path)} {status.st_size} {status.st_mtime_ns}".encode()
