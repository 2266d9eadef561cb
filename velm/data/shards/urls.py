"""Shards by name: brace ranges written out, remote ones fetched, and the manifest that `velm pack` leaves."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from typing import Any

from velm.data.tables.records import existing_path
from velm.errors import DataError, MissingPackageError

__all__ = ["MANIFEST", "expand", "local_path", "read_manifest", "short_names"]

MANIFEST = "manifest.json"
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def expand(names: str | Sequence[str]) -> list[str]:
    """Every shard that is meant: 'a-{00..02}.tar' is 'a-00.tar', 'a-01.tar', 'a-02.tar'.

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
    """What messages and image ids call each shard: its path without the folder that they all are in."""
    first, last = min(shards), max(shards)
    same = next((i for i, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first))
    common = first[:same].rpartition("/")[0]
    return [shard[len(common) :].lstrip("/") for shard in shards]


def local_path(shard: str, cache: str | None) -> str:
    """The shard itself, or for a URL its copy in the folder `cache`, fetched if it is not there yet.

    Raises:
        DataError: there is no such file, or it cannot be fetched.
        MissingPackageError: the URL needs a package that is not installed; the message names the extra.
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
    """Write to a name of our own and rename: nobody ever sees half a shard."""
    try:
        import fsspec
    except ImportError as cause:
        raise MissingPackageError(f"{url} needs fsspec, which is not installed: pip install 'velm[remote]'") from cause
    handle, partial = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".fetching-")
    try:
        with os.fdopen(handle, "wb") as target, fsspec.open(url, "rb") as source:
            shutil.copyfileobj(source, target, 1 << 20)
        os.replace(partial, path)
    except ImportError as cause:  # s3:// needs s3fs, and so on
        raise MissingPackageError(
            f"{url} needs a package that is not installed: {cause}. pip install 'velm[remote]'"
        ) from cause
    except Exception as cause:  # each protocol fails in its own ways
        raise DataError(f"Cannot fetch {url}: {type(cause).__name__}: {cause}") from cause
    finally:
        if os.path.exists(partial):
            os.remove(partial)


def read_manifest(folder: str) -> dict[str, Any] | None:
    """What `velm pack` wrote about a folder; None where it wrote nothing.

    Raises:
        DataError: it is not what `velm pack` writes.
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
        raise DataError(f"{path!r} is not written by velm pack: {type(error).__name__}: {error}") from error
    return manifest
