"""Several losses with their weights, as `losses:` of a YAML lists them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from velm import registry
from velm.errors import ConfigError
from velm.losses.base import Loss
from velm.outputs import EMBEDS, Batch, VisionLanguageOutput

__all__ = ["WeightedLosses", "build_losses"]


class WeightedLosses(nn.ModuleDict):
    """Losses by name; called, it gives their weighted sum and each of them, unweighted.

    Args:
        losses: by name.
        weights: by the same names, each >= 0.
    """

    def __init__(self, losses: Mapping[str, nn.Module], weights: Mapping[str, float]) -> None:
        super().__init__(losses)
        self.weights = dict(weights)

    def named(self) -> dict[str, Loss]:
        """The losses by name."""
        return cast("dict[str, Loss]", dict(self.items()))

    @property
    def requires(self) -> frozenset[str]:
        """What the model has to compute for them."""
        return frozenset().union(*(loss.requires for loss in self.named().values()))

    @property
    def share(self) -> bool:
        """Whether all that look at embeddings take a device's own rows; see `Loss`."""
        looking = [loss for loss in self.named().values() if not EMBEDS.isdisjoint(loss.requires)]
        return all(getattr(loss, "shares", False) for loss in looking)

    def forward(self, output: VisionLanguageOutput, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum, float (), and {name: float ()}."""
        parts = {name: loss(output, batch) for name, loss in self.items()}
        return self.weighted(parts), parts

    def weighted(self, parts: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum, float (), of the losses {name: float ()}."""
        return torch.stack([self.weights[name] * value for name, value in parts.items()]).sum()


def build_losses(losses: Mapping[str, Mapping[str, Any] | None]) -> WeightedLosses:
    """Losses from `{name: {weight: 1.0, options}}`.

    Raises:
        ConfigError: an unknown loss or option, or a weight that is negative, infinite or no number.
    """
    modules, weights = {}, {}
    for name, options in losses.items():
        rest = dict(options or {})
        weight = rest.pop("weight", 1.0)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
            raise ConfigError(f"The weight of the loss {name!r} is a number >= 0; got {weight!r}.")
        key = _key(name)
        if key in modules:
            raise ConfigError(f"`losses:` lists two that would be logged as {key!r}: rename one of the classes.")
        modules[key] = registry.losses.build({"name": name, **rest})
        weights[key] = float(weight)
    return WeightedLosses(modules, weights)


def _key(name: str) -> str:
    """What a loss is called in logs and checkpoints: its name; of a dotted path, `my_pkg.losses:Focal`, the class."""
    return name.rpartition(":")[2].replace(".", "_")
