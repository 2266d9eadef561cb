"""The dataset of a checkpoint, changed by the options `--data.dataset...` of a command."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from velm.data.base import Dataset
from velm.errors import ConfigError
from velm.registry import datasets, split_config
from velm.registry.locate import locate, name_places
from velm.registry.scalars import read_config, read_value

__all__ = ["PREFIX", "add_max_bad", "dataset_changes", "dataset_config", "max_bad_of", "open_dataset"]

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


def dataset_changes(argv: Sequence[str], prefix: str = PREFIX) -> tuple[list[str], list[tuple[str, Any]]]:
    """The arguments without those that begin with `prefix`, and these as changes to a dataset, in their order.

    Raises:
        ConfigError: the last one has no value.
    """
    rest, changes = [], []
    arguments = iter(argv)
    for argument in arguments:
        if argument != prefix and not argument.startswith((f"{prefix}.", f"{prefix}=")):
            rest.append(argument)
            continue
        key, equals, text = argument.partition("=")
        value = text if equals else next(arguments, None)
        if value is None:
            raise ConfigError(f"{key} needs a value, e.g. {prefix}.path=captions.csv.")
        path = key.removeprefix(prefix).lstrip(".")
        changes.append((path, read_value(value) if path else read_config(value, key)))
    return rest, changes


def add_max_bad(parser: argparse.ArgumentParser) -> None:
    """--data.max_bad, as `max_bad`."""
    parser.add_argument(
        "--data.max_bad",
        dest="max_bad",
        type=float,
        metavar="X",
        help="fraction of the images, 0 to 1, that may be unreadable and are then left out (default as in training)",
    )


def max_bad_of(option: float | None, data: Mapping[str, Any]) -> float:
    """The fraction of the data that may be bad: the option, else that of training, else the dataset's default.

    Args:
        option: of `add_max_bad`.
        data: the data config of a checkpoint.

    Raises:
        ConfigError: it is no fraction.
    """
    max_bad = data.get("max_bad", Dataset.max_bad) if option is None else option
    if not 0 <= max_bad <= 1:
        raise ConfigError(f"data.max_bad is a fraction of the data, between 0 and 1; got {max_bad}.")
    return float(max_bad)
