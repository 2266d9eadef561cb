"""Several losses with their weights, as `losses:` of a YAML lists them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from velm import registry
from velm.outputs import Batch, VisionLanguageOutput

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

    @property
    def requires(self) -> frozenset[str]:
        """What the model has to compute for them."""
        return frozenset().union(*(loss.requires for loss in self.values()))  # type: ignore[arg-type]

    @property
    def share(self) -> bool:
        """Whether all that look at embeddings take a device's own rows; see `Loss`."""
        looking = [loss for loss in self.values() if not {"image_embeds", "text_embeds"}.isdisjoint(loss.requires)]  # type: ignore[arg-type]
        return all(getattr(loss, "shares", False) for loss in looking)

    def forward(self, output: VisionLanguageOutput, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum, float (), and {name: float ()}."""
        parts = {name: loss(output, batch) for name, loss in self.items()}
        return torch.stack([self.weights[name] * value for name, value in parts.items()]).sum(), parts


def build_losses(losses: Mapping[str, Mapping[str, Any] | None]) -> WeightedLosses:
    """Losses from `{name: {weight: 1.0, options}}`.

    Raises:
        SpecError: an unknown loss or option, or a weight that is negative, infinite or no number.
    """
    modules, weights = {}, {}
    for name, options in losses.items():
        rest = dict(options or {})
        weight = rest.pop("weight", 1.0)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
            raise registry.SpecError(f"The weight of the loss {name!r} is a number >= 0; got {weight!r}.")
        modules[name] = registry.losses.build({"name": name, **rest})
        weights[name] = float(weight)
    return WeightedLosses(modules, weights)
