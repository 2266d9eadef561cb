"""What `model.pretrained: hf/...` says of a run's parts and data, where the user says nothing else."""

from __future__ import annotations

from collections.abc import Sequence

from velm.registry.scalars import as_flow
from velm.sources import describe_source, is_foreign
from velm.training.part_options import find_option

__all__ = ["add_source_options"]


def add_source_options(args: Sequence[str]) -> list[str]:
    """The arguments, and before them the options that describe the model that a run starts from.

    They are options like those that the user types, only earlier: a config file or a later option replaces them, and
    one that says part of a part config is merged with it.

    Raises:
        CheckpointError: there is no such model, or VELM cannot build it.
    """
    source = find_option(args, "model.pretrained")
    if not isinstance(source, str) or not is_foreign(source):
        return list(args)
    described = describe_source(source)
    options = {f"model.{name}": value for name, value in described.model.items()}
    options |= {f"data.{name}": value for name, value in described.data.items()}
    texts = {name: value if isinstance(value, str) else as_flow(value) for name, value in options.items()}
    return [*args[:1], *(f"--{name}={text}" for name, text in texts.items()), *args[1:]]
