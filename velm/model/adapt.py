"""`model.adapt`: adapters of the parts of a model, `{image_encoder: {name: lora, r: 8}}`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from velm.errors import ConfigError
from velm.pretrained.adapters import LoRA, remove_adapters
from velm.pretrained.weights import pretrained_allowed
from velm.registry.options import split_config, validated
from velm.util import did_you_mean

__all__ = ["ADAPTERS", "adapt"]

ADAPTERS: dict[str, dict[str, Any]] = {"lora": {}, "dora": {"use_dora": True}}
"""Options of `LoRA` by the names of adapters. No registry: a checkpoint may name an adapter, but no class to run."""
PARTS = ("image_encoder", "text_encoder", "decoder")


def adapt(model: nn.Module, configs: Mapping[str, Any] | None) -> None:
    """Inject fresh adapters into the parts of a model, in place of those that it has.

    Args:
        model: with the parts as children; an absent one is None.
        configs: {part: config of an adapter, a name or {name: lora, options}}.

    Raises:
        ConfigError: the model has no such part, there is no such adapter or option, or a layer cannot be adapted.
        MissingPackageError: peft is not installed.
    """
    parts = {name: part for name in PARTS if (part := getattr(model, name, None)) is not None}
    for name, config in (configs or {}).items():
        if name not in parts:
            guess = did_you_mean(name, parts)
            raise ConfigError(f"model.adapt names {name!r}; the model's parts are {', '.join(parts)}.{guess}")
        adapter = _build(name, config)
        remove_adapters(parts[name])
        try:
            adapter.inject(parts[name], initialise=pretrained_allowed())
        except ValueError as error:
            raise ConfigError(f"model.adapt.{name}: {error}") from error


def _build(part: str, config: Any) -> LoRA:
    name, options = split_config(config, f"adapter of the {part}")
    if name not in ADAPTERS:
        guess = did_you_mean(name, ADAPTERS)
        raise ConfigError(f"Unknown adapter {name!r} of the {part}.{guess} Available: {', '.join(ADAPTERS)}.")
    typed = validated(LoRA, options, ADAPTERS[name], f"adapter {name!r} of the {part}")
    try:
        return LoRA(**typed, **ADAPTERS[name])
    except ValueError as error:
        raise ConfigError(f"model.adapt.{part}: {error}") from error
