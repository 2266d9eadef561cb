"""How far two sets of tensors are apart."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

__all__ = ["ROUNDING", "TOLERANCE", "farthest", "gap", "gradients", "tell_rounding"]

TOLERANCE = 1e-9
"""Float64 in another order; relative to the largest value."""

ROUNDING = 1e-6
"""Float32 in another order."""


def gradients(module: nn.Module) -> dict[str, Tensor]:
    """Copies of the gradients, by the names of the parameters; what has none is left out."""
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def farthest(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> tuple[float, str]:
    """The largest difference relative to the largest value expected, and the name of the tensor where it is.

    A tensor that one side lacks is 0 there; inf where shapes differ or a number is not finite.
    """
    largest = max((_largest(tensor) for tensor in expected.values()), default=0.0) or 1.0
    worst, where = 0.0, next(iter(expected), "")
    for name in {**expected, **found}:
        one, other = expected.get(name), found.get(name)
        if one is not None and other is not None:
            apart = _largest(one.double() - other.double()) if one.shape == other.shape else math.inf
        else:
            apart = _largest(other if one is None else one)  # type: ignore[arg-type]
        if not apart / largest <= worst:
            worst, where = (apart / largest if math.isfinite(apart) else math.inf), name
    return worst, where


def gap(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> float:
    """The figure of `farthest`."""
    return farthest(expected, found)[0]


def tell_rounding(figure: float) -> str:
    """A note where float64 differs as float32 would."""
    if TOLERANCE < figure <= ROUNDING:
        return "rounding of float32: a part computes in it even where its weights are float64."
    return ""


def _largest(tensor: Tensor) -> float:
    if not tensor.numel():
        return 0.0
    value = float(tensor.detach().double().abs().max())
    return value if not torch.isnan(torch.tensor(value)) else math.inf
