"""The weights that parts of a model config name: the base of adapters on `hf/*`, `timm/*` and torchvision's models."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from velm.errors import CheckpointError
from velm.model import build_model
from velm.pretrained.weights import names_weights
from velm.registry import split_config
from velm.registry.manifest import require_parts
from velm.registry.scalars import plain

__all__ = ["as_source", "pretrained_parts"]

PARTS = ("image_encoder", "text_encoder", "decoder")


def as_source(config: Mapping[str, Any]) -> str | None:
    """The text, in JSON, that names the pretrained weights of a model config's parts; None if they name none.

    Args:
        config: of a model; its adapters and losses are left out.
    """
    if not _pretrained(config):
        return None
    return json.dumps(plain({name: value for name, value in config.items() if name not in ("adapt", "losses")}))


def pretrained_parts(source: str) -> dict[str, Tensor]:
    """The weights of the parts that name pretrained ones, as 'model.image_encoder...'; other weights are random.

    Args:
        source: of `as_source`.

    Raises:
        CheckpointError: a part cannot be built, or its weights cannot be read.
    """
    config = json.loads(source)
    require_parts([], config.get("plugins") or [], config, "The base of these adapters")
    try:
        with torch.random.fork_rng(devices=[]):
            state = build_model(config).state_dict()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"The pretrained parts of {source} cannot be read: {error}") from error
    parts = tuple(f"{part}." for part in _pretrained(config))
    return {f"model.{name}": tensor for name, tensor in state.items() if name.startswith(parts)}


def _pretrained(config: Mapping[str, Any]) -> list[str]:
    return [part for part in PARTS if config.get(part) and names_weights(*split_config(config[part]))]
