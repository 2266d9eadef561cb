"""The dataset of a checkpoint, opened again, perhaps with changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from velm.data.base import Dataset
from velm.errors import ConfigError
from velm.registry import datasets, split_config
from velm.registry.locate import locate, name_places

__all__ = ["PREFIX", "dataset_config", "open_dataset"]

PREFIX = "--data.dataset"
LEVELS = 4
"""Folders above a checkpoint in which its data is looked for: runs/NAME/last.ckpt lies two below the project."""


def open_dataset(
    checkpoint: str, data: Mapping[str, Any], changes: Sequence[tuple[str, Any]], prefix: str = PREFIX
) -> Dataset:
    """The dataset of a checkpoint, changed by the command line.

    Its paths start from the working folder; those that are not there are looked for in the folder of the training, and
    in the folders above the checkpoint: a project that was moved as a whole is found.

    Args:
        checkpoint: the file.
        data: the data config in it.
        changes: see `dataset_config`.
        prefix: of the options that name its places.

    Raises:
        ConfigError, DataError: it cannot be opened; the message says where was looked and which option names a place.
    """
    above = list(Path(checkpoint).expanduser().resolve().parents)[:LEVELS]
    origin = data.get("folder")
    folders = [*([origin] if origin else []), *map(str, above)]
    config = locate(dataset_config(data.get("dataset"), changes, prefix), folders, origin)
    with name_places(config, folders, prefix):
        dataset: Dataset = datasets.build(config)
    return dataset


def dataset_config(stored: Any, changes: Sequence[tuple[str, Any]], prefix: str = PREFIX) -> dict[str, Any]:
    """The config of the dataset: the one of the checkpoint, changed by the command line in the order of its options.

    Args:
        stored: the dataset's config in the checkpoint; None if it has none.
        changes: (path below `data.dataset`, value); an empty path sets the whole config. A name other than the stored
            one starts a new config, because options of one dataset mean nothing to another.
        prefix: of these options, for messages.

    Raises:
        ConfigError: there is neither a stored config nor one on the command line, or a path leads into a plain value.
    """
    config: dict[str, Any] = {}
    if stored:
        name, options = split_config(stored, "dataset")
        config = {"name": name, **options}
    for path, value in changes:
        if not path or (path == "name" and value != config.get("name")):
            name, options = split_config(value, "dataset")
            config = {"name": name, **options}
            continue
        *outer, last = path.split(".")
        level = config
        for key in outer:
            level = level.setdefault(key, {})
            if not isinstance(level, dict):
                raise ConfigError(f"{prefix}.{path}: {key!r} is {level!r}, which has no parts.")
        level[last] = value
    if "name" not in config:
        raise ConfigError(f"The checkpoint stores no dataset. Name one: {prefix} '{{name: csv, path: captions.csv}}'.")
    return config
