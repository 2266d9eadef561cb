"""`save: adapters`: best.ckpt leaves out the weights that it shares with `model.pretrained`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from velm.errors import ConfigError
from velm.pretrained.base import leave_out
from velm.sources import open_source
from velm.sources.parts import as_source, pretrained_parts

__all__ = ["shrink_best"]


def shrink_best(
    save: str, source: str | None, config: Mapping[str, Any], folder: str, own_io: bool = False
) -> Callable[[dict[str, Any]], dict[str, Any]] | None:
    """What makes of the content of a checkpoint that of a file of adapters, see `velm.pretrained.base`.

    Args:
        save: 'full' or 'adapters'.
        source: `model.pretrained` of the run.
        config: of the model, whose parts may name pretrained weights.
        folder: path or URL of the run's checkpoints.
        own_io: whether checkpoints are written in another way than VELM's.

    Returns:
        None for 'full'.

    Raises:
        ConfigError: the run has no source, or one that has adapters itself, or `own_io`.
        CheckpointError: the source cannot be used.
    """
    if save == "full":
        return None
    if own_io:
        raise ConfigError("save: adapters needs VELM's own way of writing checkpoints: set save: full.")
    if source is None:
        source = as_source(config)
        if source is None:
            raise ConfigError(
                "save: adapters leaves pretrained weights out of best.ckpt, and the run has none: set "
                "model.pretrained, or pretrained weights of a part, or save: full."
            )
        return partial(leave_out, base=pretrained_parts(source), source=source, folder=folder)
    base = open_source(source)
    if base.config.get("adapt"):
        raise ConfigError(
            f"save: adapters names its base by a hash, and {source} has adapters itself. Merge it first: velm merge "
            f"{source} --output merged.ckpt, and model.pretrained: merged.ckpt; or set save: full."
        )
    return partial(leave_out, base=base.state_dict(), source=source, folder=folder)
