"""What a class of another library requires of a part of VELM."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from velm import registry
from velm.checkpoint import Checkpoint
from velm.errors import ExportError
from velm.registry import split_config

__all__ = ["LINEAR", "grid_limits", "options_of", "part_limits", "projection_limits", "refuse"]

LINEAR = {"image_projection": "linear", "text_projection": "linear"}
"""The projections of CLIP."""


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


def projection_limits(checkpoint: Checkpoint, required: Mapping[str, str], cls: str, scaled: bool = True) -> list[str]:
    """Each projection into the joint space that `cls` does not have, and if `scaled` the lack of a scale, in words."""
    limits = []
    for name, kind in required.items():
        if (found := checkpoint.config.get(name, "linear")) != kind:
            limits.append(f"{name} is {found!r}, and {cls} has {kind!r}")
    if scaled and checkpoint.logit_scale is None:
        limits.append("no loss of it learned a scale of the cosines")
    return limits


def grid_limits(checkpoint: Checkpoint) -> list[str]:
    """The lack of a position for each patch of an image of a `vit`, in words."""
    options, size = options_of(checkpoint, "image_encoder")[1], checkpoint.transform["image_size"]
    grid = size // options["patch_size"]
    if options["position_grid"] == grid:
        return []
    return [
        f"image_encoder.position_grid is {options['position_grid']}, and images of {size} pixels have {grid} a side"
    ]


def refuse(cls: str, limits: list[str]) -> ExportError:
    """The error that names what a class cannot express."""
    return ExportError(f"{cls} cannot express this model: {'; '.join(limits)}.")
