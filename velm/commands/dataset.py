"""The dataset of a checkpoint, changed by the options `--data.dataset...` of a command."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from velm.data.base import Dataset
from velm.data.opening import PREFIX
from velm.errors import ConfigError
from velm.registry.scalars import read_config, read_value

__all__ = ["add_max_bad", "dataset_changes", "max_bad_of"]


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
