"""Which files of a folder or a shard are images, by their names; hidden files never are."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from functools import cache

from velm.errors import DataError

__all__ = ["find_images", "image_suffixes", "is_hidden", "list_images", "no_images"]

#: Folders of thumbnails and metadata that macOS and Synology add; other hidden names start with a dot.
HIDDEN = ("__MACOSX", "@eaDir")
#: Formats that Pillow recognises and cannot decode by itself, and pages of vectors, which need Ghostscript.
UNREADABLE = ("BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF")
#: Read with pillow-heif or not at all: taken all the same, so that the file is named rather than passed over.
OTHERS = (".avif", ".heic", ".heif", ".hif", ".jxl", ".dcm", ".svg", ".svgz")


@cache
def image_suffixes() -> frozenset[str]:
    """Every file extension, lower case with its dot, that Pillow decodes, and `OTHERS`."""
    from PIL import Image

    formats = Image.registered_extensions()
    return frozenset(OTHERS) | {
        suffix for suffix, name in formats.items() if name in Image.OPEN and name not in UNREADABLE
    }


def is_hidden(path: str) -> bool:
    """Whether a relative path, with '/' or the system's separator, has a hidden part: '.x', '._x.jpg', '__MACOSX'."""
    parts = path.replace(os.sep, "/").split("/")
    return any(part in HIDDEN or (part.startswith(".") and part not in (".", "..")) for part in parts)


def list_images(root: str, folder: str = ".") -> list[str]:
    """The images in a folder of `root` and its subfolders, as sorted paths from `root`; hidden ones are left out."""
    found = []
    for parent, folders, files in os.walk(os.path.join(root, folder)):
        folders[:] = [name for name in folders if not is_hidden(name)]
        names = [name for name in files if not is_hidden(name)]
        found += [os.path.join(parent, name) for name in names if os.path.splitext(name)[1].lower() in image_suffixes()]
    return sorted(os.path.normpath(os.path.relpath(path, root)) for path in found)


def find_images(paths: Sequence[str]) -> list[str]:
    """The paths, with each folder replaced by the images in it and its subfolders, sorted by name.

    Raises:
        DataError: a path does not exist, or a folder has no images; the message names it.
    """
    images: list[str] = []
    for path in paths:
        if not os.path.isdir(path):
            if not os.path.exists(path):
                raise DataError(f"There is no image or folder {path!r}.")
            images.append(path)
            continue
        below = [os.path.join(path, name) for name in list_images(path)]
        if not below:
            raise DataError(f"The folder {path!r} has {no_images(path)}.")
        images += below
    return images


def no_images(folder: str) -> str:
    """'no images at all', and the endings of the files that there are."""
    names = (name for parent, _, files in os.walk(folder) for name in files if not is_hidden(name))
    endings = [os.path.splitext(name)[1].lower() for name in names]
    listed = ", ".join(f"{ending or 'none'} ({count})" for ending, count in Counter(sorted(endings)).most_common(5))
    return f"no images at all{f', but files with the endings {listed}' if listed else ''}"
