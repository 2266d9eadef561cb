"""`Tower`, one encoder of a foreign model and its way into the joint space."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from velm.sources.state_dict import StateDict

__all__ = ["Tower", "require_known"]


@dataclass(frozen=True)
class Tower:
    """An encoder in VELM's terms.

    Attributes:
        config: of the part.
        projection: see `velm.model.model.build_projection`.
        weights: takes its weights out of a state dict for a number of tokens, by their names in a task.
    """

    config: dict[str, Any]
    projection: str
    weights: Callable[[StateDict, int], dict[str, Tensor]] = field(repr=False)


def require_known(side: str, options: Mapping[str, Any], known: Collection[str]) -> None:
    """Raise ValueError if an option is set that VELM's towers do not have."""
    unknown = sorted(name for name, value in options.items() if name not in known and value not in (None, False))
    if unknown:
        raise ValueError(f"its {side} has {unknown[0]} = {options[unknown[0]]!r}, which VELM's towers do not have.")
