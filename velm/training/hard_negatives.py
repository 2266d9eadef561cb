"""Hard negatives in training: the data module makes as many per caption as the losses read."""

from __future__ import annotations

from typing import Any

from velm.errors import ConfigError
from velm.losses.weighted import WeightedLosses

__all__ = ["announce_hard_negatives"]


def announce_hard_negatives(losses: WeightedLosses, data: Any) -> None:
    """Tell a data module how many hard negatives the losses read per caption, and check that it can make them.

    Args:
        losses: of the run.
        data: a `VisionLanguageData`, or a user's own data module.

    Raises:
        ConfigError: the data module makes no hard negatives.
        DataError: no training caption has words to exchange or to replace.
    """
    if hasattr(data, "hard_negatives"):
        data.hard_negatives = losses.hard_negatives
        _ = data.negative_draws  # raises before the first step
    elif losses.hard_negatives:
        raise ConfigError(
            f"losses.contrastive.hard_negatives is {losses.hard_negatives}, and {type(data).__name__} makes none: "
            f"use velm.training.data.VisionLanguageData, or set hard_negatives: 0."
        )
