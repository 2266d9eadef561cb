"""Which images of a table are not there."""

from __future__ import annotations

import os
from collections.abc import Iterable
from itertools import compress, islice

import numpy as np

from velm.data.bad_samples import BadSample
from velm.data.base import no_image_message
from velm.data.tables.columns import SLICE

__all__ = ["missing_images"]


def missing_images(root: str, paths: Iterable[str]) -> list[BadSample]:
    """The images that are not there, each folder being read once (a look at each file is slow over a network).

    Of a folder's files only hashes are kept, eight bytes each, so that there may be millions. A missing image that
    shares its hash with one that is there (for ten million of each, odds of 1 in 200,000) is told when it is looked at.
    """
    contents: dict[str, np.ndarray] = {}
    missing: dict[str, None] = {}
    waiting = iter(paths)
    while some := list(islice(waiting, SLICE)):
        folders: dict[str, list[str]] = {}
        for path in some:
            folders.setdefault(os.path.dirname(os.path.join(root, path)), []).append(path)
        absent: set[str] = set()
        for folder, inside in folders.items():
            if folder not in contents:
                contents[folder] = _names_in(folder)
            names = np.fromiter((hash(os.path.basename(path)) for path in inside), np.int64, len(inside))
            absent.update(compress(inside, ~_among(names, contents[folder])))
        missing |= {path: None for path in some if path in absent}
    advice = f"Put the images there, or set root (now {root!r}) to the folder that their paths start from."
    found = (os.path.join(root, path) for path in missing)
    return [BadSample(path, no_image_message(path), lost=0, advice=advice) for path in found]


def _names_in(folder: str) -> np.ndarray:
    """int64 (files,), hashes of a folder's names, sorted; none where there is no folder."""
    if not os.path.isdir(folder):
        return np.zeros(0, np.int64)
    with os.scandir(folder) as files:
        return np.sort(np.fromiter((hash(file.name) for file in files), np.int64))


def _among(values: np.ndarray, ascending: np.ndarray) -> np.ndarray:
    """bool (n,), which of the values are in a sorted array."""
    if not len(ascending):
        return np.zeros(len(values), bool)
    places = np.minimum(np.searchsorted(ascending, values), len(ascending) - 1)
    return ascending[places] == values
