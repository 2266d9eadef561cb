"""Shard names: brace ranges, download of remote shards, and the manifest of `velm pack`."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Sequence
from typing import Any

from velm.data.tables.validate import existing_path
from velm.errors import DataError, MissingPackageError
from velm.util import write_atomically

__all__ = ["MANIFEST", "expand", "local_path", "read_manifest", "short_names"]

MANIFEST = "manifest.json"
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def expand(names: str | Sequence[str]) -> list[str]:
    """The shards of names with brace ranges: 'a-{00..02}.tar' is 'a-00.tar', 'a-01.tar', 'a-02.tar'.

    Raises:
        DataError: a range ends before it begins.
    """
    shards: list[str] = []
    for name in [names] if isinstance(names, str) else names:
        match = RANGE.search(name)
        if match is None:
            shards.append(name)
            continue
        first, last = match.groups()
        if int(last) < int(first):
            raise DataError(f"{name!r}: the range {match.group()} ends before it begins.")
        for number in range(int(first), int(last) + 1):
            shards += expand(f"{name[: match.start()]}{number:0{len(first)}d}{name[match.end() :]}")
    return shards


def short_names(shards: Sequence[str]) -> list[str]:
    """Shard paths relative to their common folder, for messages and image ids."""
    first, last = min(shards), max(shards)
    same = next((i for i, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first))
    common = first[:same].rpartition("/")[0]
    return [shard[len(common) :].lstrip("/") for shard in shards]


def local_path(shard: str, cache: str | None) -> str:
    """The path of a local shard, or of the copy of a remote one in `cache`, downloaded if missing.

    Raises:
        DataError: the file does not exist or cannot be fetched.
        MissingPackageError: the URL's protocol needs a package that is not installed; the message names the extra.
    """
    if "://" not in shard:
        return existing_path(shard)
    folder = cache or os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "velm", "shards")
    name = os.path.basename(shard.partition("?")[0]) or "shard.tar"
    path = os.path.join(folder, f"{hashlib.sha256(shard.encode()).hexdigest()[:16]}-{name}")
    if not os.path.exists(path):
        os.makedirs(folder, exist_ok=True)
        _fetch(shard, path)
    return path


def _fetch(url: str, path: str) -> None:
    import fsspec  # comes with torch

    try:
        with write_atomically(path) as partial, partial.open("wb") as target, fsspec.open(url, "rb") as source:
            shutil.copyfileobj(source, target, 1 << 20)
    except ImportError as cause:  # s3:// needs s3fs, and so on
        raise MissingPackageError(
            f"{url} needs a package that is not installed: {cause}. pip install 'velm[remote]'"
        ) from cause
    except Exception as cause:  # each protocol fails in its own ways
        raise DataError(f"Cannot fetch {url}: {type(cause).__name__}: {cause}") from cause


def read_manifest(folder: str) -> dict[str, Any] | None:
    """The manifest that `velm pack` wrote into a folder; None without one.

    Raises:
        DataError: the file is not a manifest of `velm pack`.
    """
    path = os.path.join(folder, MANIFEST)
    if not os.path.exists(path):
        return None
    try:
        with open(path, encoding="utf-8") as file:
            manifest: dict[str, Any] = json.load(file)
        for shard in manifest["shards"]:
            shard["name"], shard["split"], shard["samples"], shard["left_out"], shard["sha256"]
        manifest["velm"], manifest["dataset"], manifest["shard_size"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path!r} was not written by velm pack: {type(error).__name__}: {error}") from error
    return manifest
