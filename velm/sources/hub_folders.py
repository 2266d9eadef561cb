"""Folders of `velm export` on the Hugging Face hub: `hf://org/name` and `hf://org/name@revision`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from velm.errors import CheckpointError
from velm.util import describe_error

__all__ = ["HUB", "download", "is_hub"]

HUB = "hf://"


def is_hub(source: str | Path) -> bool:
    """Whether a source is a repository of the hub."""
    return isinstance(source, str) and source.startswith(HUB)


def download(source: str, **options: Any) -> Path:
    """The folder in the cache that holds a repository; downloads what the cache lacks.

    Args:
        source: 'hf://org/name' or 'hf://org/name@revision'.
        **options: of `huggingface_hub.snapshot_download`: revision, token, cache_dir, force_download,
            local_files_only.

    Raises:
        CheckpointError: there is no such repository, or it cannot be reached.
    """
    from huggingface_hub import snapshot_download

    name, _, revision = source.removeprefix(HUB).partition("@")
    if name.count("/") != 1 or not all(name.split("/")):
        raise CheckpointError(
            f"{source!r} is no repository of the hub; one is hf://org/name or hf://org/name@revision."
        )
    if revision:
        options = {"revision": revision, **options}
    try:
        return Path(snapshot_download(name, **options))
    except Exception as error:  # of requests, httpx or httpx2, by the release of huggingface_hub
        raise CheckpointError(
            f"{HUB}{name} cannot be downloaded: {describe_error(error)}. Check the name, the network, and for a "
            f"private repository `hf auth login`; a folder on this disk is given by its path."
        ) from error
