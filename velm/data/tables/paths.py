"""The image paths of a table and the files of its folder: which are missing, outside, or written in another way."""

from __future__ import annotations

import math
import os
import re
import shlex
import unicodedata
import warnings
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from velm.data.bad_samples import BadSample
from velm.data.base import no_image_message
from velm.data.images.names import image_suffixes, is_hidden
from velm.data.tables.validate import has_text, true_indices

__all__ = ["DOWNLOAD", "download_first", "find_images", "image_folder", "replace_paths", "unusable_paths"]

SUSPECT = r"^[/\\]|^[A-Za-z]:|\.\.|://"  # what every URL and every path out of root has
URL = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+://")
OUTSIDE = "Set root to another folder, or allow_outside to true to let paths lead out of it."
IMG2DATASET_SHARD = 10_000  # images of a shard, img2dataset's default
DOWNLOAD = "VELM reads files: download the images first, with img2dataset for example."


def unusable_paths(paths: pa.ChunkedArray, root: str, allow_outside: bool) -> tuple[dict[int, str], str]:
    """What is wrong with the paths that are URLs or lead out of `root`, by row, and what to do.

    Absolute paths that start with `root` are inside. Only rows that look suspicious leave Arrow.
    """
    suspect = pc.match_substring_regex(paths, SUSPECT)
    if not pc.any(suspect).as_py():
        return {}, ""
    prefixes = _prefixes(root)
    for prefix in prefixes:
        inside = pc.and_(pc.starts_with(paths, prefix), pc.invert(pc.match_substring(paths, "..")))
        suspect = pc.and_not(suspect, inside)
    causes: dict[int, str] = {}
    advice: dict[str, None] = {}
    for row in true_indices(suspect):
        path = paths[row].as_py()
        if URL.match(path):
            causes[row] = f"names the URL {path!r}"
            advice[DOWNLOAD] = None
        elif not allow_outside and _relative(prefixes, path) is None:
            causes[row] = f"names the image {path!r}, which is outside {root!r}, the folder that paths start from"
            if not advice:
                advice[_inside_of(root, path) or OUTSIDE] = None
    return causes, " ".join(advice)


def download_first(file: str, url_column: str, text_column: str, rows: int) -> str:
    """The message for a table of URLs (Conceptual Captions, LAION): what to type to download it, and what then."""
    stem, suffix = os.path.splitext(os.path.basename(file).removesuffix(".gz"))
    suffix = suffix[1:] + ".gz" * file.endswith(".gz")
    last = max(0, math.ceil(rows / IMG2DATASET_SHARD) - 1)
    command = (
        f"img2dataset --url_list {shlex.quote(file)} --input_format {suffix or 'csv'} --url_col "
        f"{shlex.quote(url_column)} --caption_col {shlex.quote(text_column)} --output_format webdataset "
        f"--output_folder {shlex.quote(stem)}"
    )
    return (
        f"The column {url_column!r} of {file!r} holds URLs, and VELM reads files, so download the images first, with "
        f"{command}, and then set dataset: {{name: webdataset, train: '{stem}/{{00000..{last:05d}}}.tar'}}."
    )


def _prefixes(root: str) -> set[str]:
    """The beginnings of absolute paths inside `root`, symbolic links followed or not."""
    return {os.path.join(os.path.abspath(root), ""), os.path.join(os.path.realpath(root), "")}


def _relative(prefixes: set[str], path: str) -> str | None:
    """A path from the root with these `_prefixes`, with '/'; None if it leads out. Backslashes always separate."""
    if path[1:2] == ":" and os.sep != "\\":  # a drive of Windows
        return None
    path = os.path.normpath(path.replace("\\", "/"))
    for prefix in prefixes:
        path = path.removeprefix(prefix)
    return None if os.path.isabs(path) or path.split(os.sep)[0] == os.pardir else path.replace(os.sep, "/")


def _inside_of(root: str, path: str) -> str:
    """Advice if the end of a path out of `root` is a file inside it: an absolute path of another computer."""
    parts = path.replace("\\", "/").split("/")
    for start in range(1, len(parts)):
        end = "/".join(parts[start:])
        if os.path.isfile(os.path.join(root, end)):
            head = path[: len(path) - len(end)]
            return f"There is {end!r} inside: remove {head!r} from the paths."
    return ""


def find_images(root: str, paths: pa.ChunkedArray | pa.Array) -> tuple[dict[str, str], list[BadSample]]:
    """Compare image paths with the files under `root`.

    A path without a file is looked for with other separators, another Unicode form or case, and with the extension
    that it lacks; if exactly one file fits, it is taken. Blank paths are skipped.

    Each folder is listed once: asking for every file is slow on network drives. File names are compared as bytes,
    since a folder may hold names that are not UTF-8.

    Returns:
        the file of each path that is written in another way; a bad sample for each path without a file, once, in
        the order of `paths`.
    """
    paths = pc.unique(paths).cast(pa.large_string())
    paths = paths.filter(has_text(paths))
    separators = re.escape(os.sep + (os.altsep or ""))
    folders = pc.unique(pc.replace_substring_regex(paths, f"[^{separators}]*$", "")).to_pylist()
    existing = [pa.array(_paths_in(root, folder), pa.large_binary()) for folder in folders]
    present = pc.is_in(paths.cast(pa.large_binary()), value_set=pa.chunked_array(existing, pa.large_binary()))
    found: dict[str, str] = {}
    bad_samples: list[BadSample] = []
    files, advice = _Files(root), None
    for path in paths.filter(pc.invert(present)).to_pylist():
        similar, others = files.similar(path)
        if len(similar) == 1 and similar[0] != path:
            found[path] = similar[0]
            continue
        if advice is None:
            advice = _root_of(root, path)
        full = os.path.join(root, path)
        question = f" Is it {' or '.join(map(repr, similar[:3]))}?" if similar else others
        bad_samples.append(BadSample(full, no_image_message(full) + question, lost=0, advice=advice))
    return found, bad_samples


def replace_paths(table: pa.Table, root: str, file: str) -> tuple[pa.Table, list[BadSample]]:
    """The table with the paths of the files that were found, and a bad sample for each image that is missing.

    Warns, with one example, if paths of `file` are written in another way than those of the disk.
    """
    column = table["image"]
    found, missing = find_images(root, column)
    if found:
        old, new = next(iter(found.items()))
        warnings.warn(
            f"{len(found):,} image paths of {file!r} differ from the files in {root!r} by separators, case, ending or "
            f"Unicode form, and are read all the same: {old!r} is {new!r}.",
            stacklevel=3,
        )
        names, files = (pa.array(list(each), pa.large_string()) for each in (found, found.values()))
        column = pc.coalesce(files.take(pc.index_in(column, value_set=names)), column)
        table = table.set_column(table.column_names.index("image"), "image", column)
    return table, missing


def _paths_in(root: str, folder: str) -> list[bytes]:
    """The files of a folder of `root`, as paths from `root`; none if there is no such folder."""
    path = os.path.join(root, folder)
    return [folder.encode() + name for name in os.listdir(os.fsencode(path))] if os.path.isdir(path) else []


def _root_of(root: str, path: str) -> str:
    """Advice for a path without a file: the root that it starts from, if that is close by."""
    for folder in (*_subfolders(root, depth=2), os.path.dirname(os.path.abspath(root))):
        if os.path.isfile(os.path.join(folder, path)):
            return f"There is {path!r} in {folder!r}: set root to it."
    return f"Put the images there, or set root (now {root!r}) to the folder that their paths start from."


def image_folder(names: list[str], *starts: str) -> str | None:
    """The first folder that has a file of each of the names: one of `starts`, or of their subfolders."""
    folders = [*starts, *(folder for start in starts for folder in _subfolders(start, depth=2))]
    has_all = (folder for folder in folders if all(os.path.isfile(os.path.join(folder, name)) for name in names))
    return next(has_all, None)


def _subfolders(folder: str, depth: int) -> Iterator[str]:
    """The folders in a folder, then those in them; sorted, hidden ones left out."""
    try:
        found = sorted(entry.path for entry in os.scandir(folder) if entry.is_dir() and not is_hidden(entry.name))
    except OSError:
        return
    yield from found
    for each in found if depth > 1 else ():
        yield from _subfolders(each, depth - 1)


class _Files:
    """Looks up the files and folders of `root` by similar names; lists a folder when a path leads there."""

    def __init__(self, root: str) -> None:
        self._root, self._prefixes = root, _prefixes(root)
        self._names: dict[str, tuple[dict[str, list[str]], dict[str, list[str]]]] = {}  # by key, and by key of the stem
        self._folders: dict[str, str | None] = {"": ""}

    def similar(self, path: str) -> tuple[list[str], str]:
        """The files, as paths from `root`, that a path may mean, several where it is ambiguous; without any,
        ' There is 'a.png'.' for 'a.jpg', else ''.
        """
        folder, name = self._folder_and_name(path)
        if folder is None:
            return [], ""
        whole, stems = self._listing(folder)
        key = _key(name)
        names = whole.get(key) or stems.get(key)
        if names:
            return [folder + each for each in names], ""
        others = stems.get(os.path.splitext(key)[0], [])
        return [], f" There is {' and '.join(repr(folder + each) for each in others[:3])}." if others else ""

    def _folder_and_name(self, path: str) -> tuple[str | None, str]:
        relative = _relative(self._prefixes, path)
        if relative is None:
            return None, path
        folder, _, name = relative.rpartition("/")
        return self._folder(folder), name

    def _folder(self, path: str) -> str | None:
        """The folder that a path from `root` means, '' or with '/' at its end; None if there is none, or several."""
        if path not in self._folders:
            above, _, name = path.rpartition("/")
            parent = self._folder(above)
            names = [] if parent is None else self._listing(parent)[0].get(_key(name), [])
            names = [name] if name in names else names
            self._folders[path] = f"{parent}{names[0]}/" if len(names) == 1 else None
        return self._folders[path]

    def _listing(self, folder: str) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        if folder not in self._names:
            whole: dict[str, list[str]] = {}
            stems: dict[str, list[str]] = {}
            path = os.path.join(self._root, folder)
            for name in sorted(filter(_is_text, os.listdir(path))) if os.path.isdir(path) else ():
                whole.setdefault(_key(name), []).append(name)
                stem, suffix = os.path.splitext(name)
                if suffix.lower() in image_suffixes() and not is_hidden(name):
                    stems.setdefault(_key(stem), []).append(name)
            self._names[folder] = whole, stems
        return self._names[folder]


def _key(name: str) -> str:
    """Equal for names that differ in Unicode form, case or surrounding blanks."""
    if name.isascii():
        return name.strip().lower()
    return unicodedata.normalize("NFC", name.strip()).casefold()


def _is_text(name: str) -> bool:
    """Whether the bytes of a file name are UTF-8."""
    return name.isascii() or not any("\ud800" <= character <= "\udfff" for character in name)
