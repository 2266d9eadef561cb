"""The images that an index follows: the files of a folder, or the images of a dataset's split."""

from __future__ import annotations

import json
import os
import stat
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from velm.data.base import Record, image_name, no_image_message
from velm.data.images.names import image_suffixes, is_hidden, no_images
from velm.errors import DataError, cause_of

__all__ = ["Source", "folder_source", "records_source"]

Stamp = tuple[int, int]
"""Size in bytes and modification time in nanoseconds."""
UNSTAMPED: Stamp = (-1, -1)
"""Of images that are no files: they are read each time."""


@dataclass
class Source:
    """What there is to index.

    Attributes:
        root: the folder that the paths start from; '' where they are absolute, or names of a dataset.
        stamps: of each image, by its path.
        bad: why an image cannot be read, by its path.
        unreadable: why a folder cannot be listed, by its path; rows below it are kept.
        load: the image of a path, where it is no file.
        about: of a dataset, for index.json.
        exclude: patterns that were left out.
    """

    root: str
    stamps: dict[str, Stamp] = field(default_factory=dict)
    bad: dict[str, str] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    load: Callable[[str], Any] | None = None
    about: Mapping[str, Any] | None = None
    exclude: Sequence[str] = ()

    def add(self, path: str, status: os.stat_result) -> None:
        """Add a file by its status."""
        if not stat.S_ISREG(status.st_mode):
            self.bad[path] = "it is no regular file"
        else:
            self.stamps[path] = (status.st_size, status.st_mtime_ns)

    def file(self, path: str) -> str:
        return os.path.join(self.root, path)


def folder_source(folder: str | os.PathLike[str], exclude: Sequence[str] = ()) -> Source:
    """The images of a folder and its subfolders; hidden ones are left out.

    Links are followed; a folder that several of them lead to counts once, so that circles end.

    Args:
        folder: to search.
        exclude: patterns of names ('thumbs', '*.gif') or of paths from the folder ('2019/raw', 'trips/*/raw').

    Raises:
        DataError: there is no such folder.
    """
    root = os.path.abspath(os.path.expanduser(folder))
    if not os.path.isdir(root):
        raise DataError(f"There is no folder {os.fspath(folder)!r}. If it is on a disk that is not mounted, mount it.")
    source = Source(root, exclude=tuple(exclude))
    patterns = [unicodedata.normalize("NFC", pattern.rstrip("/")) for pattern in exclude]
    folders, links = [""], list[str]()
    seen: set[tuple[int, int]] = set()
    while folders or links:
        below = folders.pop() if folders else links.pop()
        try:
            status = os.stat(source.file(below))
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            entries = sorted(os.scandir(source.file(below)), key=lambda entry: entry.name, reverse=True)
        except OSError as error:
            source.unreadable[below] = str(error.strerror)
            continue
        for entry in entries:
            path = f"{below}/{entry.name}" if below else entry.name
            if is_hidden(entry.name) or _excluded(path, patterns):
                continue
            if entry.is_dir():
                (links if entry.is_symlink() else folders).append(path)
            elif os.path.splitext(entry.name)[1].lower() in image_suffixes():
                _add(source, path, entry)
    source.stamps = dict(sorted(source.stamps.items()))
    return source


def _add(source: Source, path: str, entry: os.DirEntry[str]) -> None:
    try:
        path.encode()
    except UnicodeEncodeError:
        source.bad[path.encode(errors="backslashreplace").decode()] = "its name is not UTF-8: rename it"
        return
    try:
        source.add(path, entry.stat())
    except OSError as error:
        source.bad[path] = f"its link leads nowhere ({error.strerror})" if entry.is_symlink() else str(error.strerror)


def _excluded(path: str, patterns: Sequence[str]) -> bool:
    """Whether a pattern is of the path or of its last part; upper folders were examined before."""
    normal = unicodedata.normalize("NFC", path)
    name = normal.rpartition("/")[2]
    return any(fnmatchcase(normal, pattern) or fnmatchcase(name, pattern) for pattern in patterns)


def records_source(records: Sequence[Record], about: Mapping[str, Any]) -> Source:
    """The images of a split, each once; records without an image are left out.

    Args:
        records: of the split.
        about: the dataset's config and the split, for index.json.
    """
    source = Source("", about=json.loads(json.dumps(about, default=str)))
    places: dict[str, int] = {}
    for number, record in enumerate(records):
        if record.image is None:
            continue
        name = image_name(record)
        if isinstance(record.image, str | os.PathLike):
            name = os.path.abspath(name)
            try:
                source.add(name, os.stat(name))
            except FileNotFoundError:
                source.bad[name] = no_image_message(name)
            except OSError as error:
                source.bad[name] = cause_of(error)
        elif name not in places:
            places[name] = number
            source.stamps[name] = UNSTAMPED
    if places:
        source.load = lambda name: records[places[name]].image if name in places else None
    return source


def nothing(source: Source) -> str:
    """The message for a source without images."""
    if source.about is not None:
        return "The split has no images: its records are texts."
    excluded = f" outside of {', '.join(map(repr, source.exclude))}" if source.exclude else ""
    return f"The folder {source.root!r} has {no_images(source.root)}{excluded}."
