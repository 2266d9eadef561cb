"""What a class of another library requires of a part of VELM."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from velm import registry
from velm.checkpoint import Checkpoint
from velm.registry import split_config

__all__ = ["options_of", "part_limits"]


def options_of(checkpoint: Checkpoint, part: str) -> tuple[str, dict[str, Any]]:
    """The name and the options of a part, defaults included."""
    name, options = split_config(checkpoint.config[part], part)
    kinds = {"image_encoder": registry.image_encoders, "text_encoder": registry.text_encoders}
    cls = kinds[part].get(name) if part in kinds else registry.decoders.get(name)
    parameters = inspect.signature(cls).parameters.values()
    return name, {p.name: p.default for p in parameters if p.default is not p.empty} | options


def part_limits(checkpoint: Checkpoint, part: str, name: str, required: Mapping[str, Any], cls: str) -> list[str]:
    """Each option of a part that the class `cls` cannot express, in words.

    Args:
        name: of the part in the registry.
        required: values of its options.
    """
    if checkpoint.config.get(part) is None:
        return [f"there is no {part}"]
    found, options = options_of(checkpoint, part)
    if found != name:
        return [f"the {part} is {found!r}, and that of {cls} is a {name}"]
    return [
        f"{part}.{key} is {options[key]!r}, and {cls} has {value!r}"
        for key, value in required.items()
        if options[key] != value
    ]
