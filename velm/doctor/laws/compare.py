"""The largest difference of two sets of tensors, and the finding about it."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor, nn

from velm.findings import Finding

TOLERANCE = 1e-9
"""Rounding of float64 in another order of operations; relative to the largest value."""

ROUNDING = 1e-6
"""Rounding of float32 in another order of operations; relative to the largest value."""


def passed(check: str, difference: float, note: str = "") -> Finding:
    """The finding of a law that holds up to `difference`, relative to the largest value compared.

    A note is added if float64 differs as much as float32 does.
    """
    rounding = ""
    if TOLERANCE < difference <= ROUNDING:
        rounding = "This is rounding of float32: a part computes in float32 although its weights are float64."
    message = " ".join(part for part in (f"Differs by at most {difference:.1e}.", rounding, note) if part)
    return Finding(check, "ok", message, value={"difference": difference})


def failed(check: str, difference: float, message: str) -> Finding:
    """The finding of a broken law; a difference that is not finite is None in JSON."""
    return Finding(check, "error", message, value={"difference": difference if math.isfinite(difference) else None})


def gradients(module: nn.Module) -> dict[str, Tensor]:
    """The gradients by parameter name; parameters without a gradient are left out."""
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


def farthest(expected: Mapping[str, Tensor], actual: Mapping[str, Tensor]) -> tuple[float, str]:
    """The largest difference relative to the largest expected value, and the name of its tensor.

    A tensor that one side lacks counts as 0; the difference is inf if shapes differ or a value is not finite.
    """
    largest = max((_largest(tensor) for tensor in expected.values()), default=0.0) or 1.0
    worst, where = 0.0, next(iter(expected), "")
    for name in {**expected, **actual}:
        one, other = expected.get(name), actual.get(name)
        if one is not None and other is not None:
            apart = _largest(one.double() - other.double()) if one.shape == other.shape else math.inf
        else:
            apart = _largest(other if one is None else one)  # type: ignore[arg-type]
        if not apart / largest <= worst:
            worst, where = (apart / largest if math.isfinite(apart) else math.inf), name
    return worst, where


def _largest(tensor: Tensor) -> float:
    if not tensor.numel():
        return 0.0
    value = float(tensor.detach().double().abs().max())
    return value if not math.isnan(value) else math.inf
