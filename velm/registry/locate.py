"""Finds the files that part configs name: `~` is the home folder, and a missing path may lie beside the config."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from velm.errors import DataError

__all__ = ["locate", "locate_path", "name_places"]

INPUTS = ("path", "root", "labels", "weights", "train", "val", "test")
"""Options that name files and folders which are read; the last three are shards."""
PATTERN = "{*?["
"""Where a path with one of these begins to be a pattern of names."""


def locate(config: Any, folders: Sequence[str], origin: str | None = None) -> Any:
    """A part config whose paths are those of files that exist, as far as they do; prints where they were found.

    A path starts from the working folder. If some are not there, the first of `folders` that has all of them is taken,
    else for each path the first that has it.

    Args:
        config: of one part; parts inside it, in lists and mappings, are included.
        folders: to look in afterwards, such as the folder of the config file.
        origin: folder that the config was written for: absolute paths inside it are looked for in `folders` too.
    """
    wanted = [path for path in _paths(config) if not _exists(path)]
    if not wanted:
        return _replace(config, {})
    bases = [base for base in folders if base]
    whole = [base for base in bases if all(_exists(_below(base, path, origin)) for path in _paths(config))]
    found: dict[str, str] = {}
    for path in wanted if not whole else _paths(config):
        places = [_below(base, path, origin) for base in whole[:1] or bases]
        place = next((place for place in places if _exists(place)), None)
        if place is not None and place != path:
            found[path] = place
    if found and os.environ.get("LOCAL_RANK", "0") == "0":
        listed = ", ".join(f"{path} is {place}" for path, place in found.items())
        print(f"Not in the working folder, and found elsewhere: {listed}.", file=sys.stderr)
    return _replace(config, found)


def locate_path(path: str, folders: Sequence[str]) -> str:
    """One path, as `locate` finds it."""
    found: str = locate({"name": "", "path": path}, folders)["path"]
    return found


@contextmanager
def name_places(config: Any, folders: Sequence[str], option: str) -> Iterator[None]:
    """Add to a `DataError` where the paths of `config` that do not exist were looked for, and what to type.

    Raises:
        DataError: the one of the block.
    """
    try:
        yield
    except DataError as error:
        missing = {key: path for key, path in _named_paths(config) if not _exists(path)}
        if not missing or type(error) is not DataError:
            raise
        key, path = next(iter(missing.items()))
        others = [folder for folder in dict.fromkeys(map(os.path.abspath, folders)) if folder != os.getcwd()]
        beside = f" and, as it is not there, in {', '.join(others)}" if others and not os.path.isabs(path) else ""
        start = "" if os.path.isabs(path) else f" Paths start from the current folder: looked in {os.getcwd()}{beside}."
        raise DataError(f"{error}{start} Name another place: {option}.{key}=...") from error


def _named_paths(config: Any) -> Iterator[tuple[str, str]]:
    """Option and path, expanded, of each local path in a part config and the parts inside it."""
    if isinstance(config, Mapping) and "name" in config:
        for key, value in config.items():
            for path in value if isinstance(value, list) else [value]:
                if key in INPUTS and isinstance(path, str) and path and "://" not in path:
                    yield key, os.path.expanduser(path)
                elif isinstance(path, Mapping):
                    yield from _named_paths(path)
                    for inner in path.values():
                        yield from _named_paths(inner)


def _paths(config: Any) -> list[str]:
    return list(dict.fromkeys(path for _, path in _named_paths(config)))


def _replace(config: Any, found: Mapping[str, str]) -> Any:
    """The config with `~` expanded and the paths in `found` replaced."""

    def path(key: str, value: Any) -> Any:
        if isinstance(value, str) and (key in INPUTS or key == "cache"):
            expanded = os.path.expanduser(value)
            return found.get(expanded, expanded)
        return value

    def inside(key: str, value: Any) -> Any:
        if isinstance(value, list):
            return [inside(key, item) for item in value]
        if isinstance(value, Mapping):
            return {k: inside(k if "name" in value else "", v) for k, v in value.items()}
        return path(key, value)

    return inside("", config)


def _below(base: str, path: str, origin: str | None) -> str:
    """A path below `base`; an absolute one only where it lies in `origin`."""
    if os.path.isabs(path):
        if origin is None or os.path.commonpath([origin, path]) != origin:
            return path
        path = os.path.relpath(path, origin)
    return os.path.join(base, path)


def _exists(path: str) -> bool:
    """Whether a file or folder is there; of a pattern of names, the folder that it begins with."""
    if os.path.exists(path):
        return True
    first = min((path.find(sign) for sign in PATTERN if sign in path), default=-1)
    return first >= 0 and os.path.isdir(os.path.dirname(path[:first]) or ".")
