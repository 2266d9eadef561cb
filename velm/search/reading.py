"""Reads the images of an update in threads: their hash, and their pixels where the hash is new."""

from __future__ import annotations

import hashlib
import io
import os
import time
from collections import deque
from collections.abc import Callable, Container, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from velm.data.base import EncodedImage
from velm.errors import cause_of
from velm.search.sources import Source

__all__ = ["Reading", "read_images"]

YOUNG = 2_000_000_000
"""Nanoseconds, the coarsest clock of a file system (FAT's): within it a file may change and keep its time."""


class Reading(NamedTuple):
    """What was read of an image.

    Attributes:
        path: in the source.
        size, mtime_ns, hash, width, height, reason: see `velm.search.store.Row`.
        pixels: uint8 (3, H, W), as the model reads it; None if it is bad or its hash is known.
        vanished: the file was deleted since it was listed.
    """

    path: str
    size: int = 0
    mtime_ns: int = -1
    hash: str = ""
    width: int = 0
    height: int = 0
    reason: str = ""
    pixels: Tensor | None = None
    vanished: bool = False


def read_images(
    source: Source, paths: Sequence[str], transform: Callable[[Any], Tensor], known: Container[str], ahead: int
) -> Iterator[Reading]:
    """A reading for each path, in order.

    Args:
        source: of the paths.
        paths: to read.
        transform: image to uint8 (3, H, W).
        known: hashes whose pixels are not needed.
        ahead: readings in memory.
    """
    pool = ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1))
    waiting: deque[Future[Reading]] = deque()
    try:
        for path in paths:
            waiting.append(pool.submit(_read, source.file(path), path, _load(source, path), transform, known))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _load(source: Source, path: str) -> Any:
    """The image of a dataset, None for a file, or the error that it raises; one thread reads a dataset."""
    try:
        return None if source.load is None else source.load(path)
    except Exception as error:  # the record cannot be read
        return error


def _read(file: str, path: str, image: Any, transform: Callable[[Any], Tensor], known: Container[str]) -> Reading:
    """The reading of a file, or of what `_load` returned."""
    found = Reading(path)
    try:
        if isinstance(image, Exception):
            raise image
        if image is None:
            content, size, mtime_ns = _content(file)
            image = EncodedImage(file, lambda: content)
            found = found._replace(size=size, mtime_ns=mtime_ns)
        elif isinstance(image, EncodedImage):
            content = image.load()
            image = EncodedImage(image.name, lambda: content)
            found = found._replace(size=len(content))
        else:
            array = np.asarray(image)
            content = f"{array.dtype} {array.shape}".encode() + array.tobytes()
            found = found._replace(size=array.nbytes, height=array.shape[0], width=array.shape[1])
        found = found._replace(hash=hashlib.blake2b(content, digest_size=16).hexdigest())
        if found.hash in known:
            return found
        if isinstance(image, EncodedImage):
            width, height = _dimensions(content)
            found = found._replace(width=width, height=height)
        return found._replace(pixels=transform(image))
    except FileNotFoundError:
        return found._replace(vanished=True)
    except Exception as error:  # any error of a codec, a disk or a dataset
        return found._replace(reason=cause_of(error))


def _content(path: str) -> tuple[bytes, int, int]:
    """The content of a file, its size and its time; -1 for a time that does not identify the content."""
    with open(path, "rb") as file:
        before = os.fstat(file.fileno())
        content = file.read()
        after = os.fstat(file.fileno())
    same = (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
    young = time.time_ns() - after.st_mtime_ns < YOUNG
    return content, len(content), after.st_mtime_ns if same and not young else -1


def _dimensions(content: bytes) -> tuple[int, int]:
    """Width and height in pixels, (0, 0) where Pillow cannot say."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            return image.size
    except Exception:  # of any codec: the transform names it
        return 0, 0
