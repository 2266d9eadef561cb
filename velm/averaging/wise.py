"""WiSE-FT: the curve of averages between a model and its fine-tuned copy (Wortsman et al. 2022, arXiv 2109.01903).

The weights are (1 - alpha) * theta_0 + alpha * theta_1. Between a zero-shot model and its fine-tuned copy, some alpha
often loses nothing on the data of the fine-tuning and keeps most of what the zero-shot model can do elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from velm.averaging.average import average
from velm.averaging.compatible import require_same_model
from velm.checkpoint import Checkpoint
from velm.errors import ConfigError

__all__ = ["Point", "alphas_of", "best_point", "wise_curve"]

Measured = TypeVar("Measured")


@dataclass(frozen=True)
class Point(Generic[Measured]):
    """A point of the curve: the weight of the fine-tuned model, and what was measured there."""

    alpha: float
    metrics: Measured


def alphas_of(text: str) -> list[float]:
    """The numbers of '0:1:0.1', start, end and step; the end is among them if a step reaches it.

    Raises:
        ConfigError: it is no such text, or the numbers are not between 0 and 1.
    """
    try:
        start, stop, step = (float(each) for each in text.split(":"))
    except ValueError:
        start, stop, step = math.nan, math.nan, math.nan
    if not (0 <= start < stop <= 1 and step > 0):
        raise ConfigError(
            f"--wise {text!r}: give start:end:step between 0, the first checkpoint, and 1, the second, e.g. 0:1:0.1."
        )
    return [round(start + step * number, 10) for number in range(int((stop - start) / step + 1e-9) + 1)]


def wise_curve(
    zero_shot: Checkpoint,
    fine_tuned: Checkpoint,
    alphas: Sequence[float],
    measure: Callable[[Checkpoint], Measured],
) -> Iterator[Point[Measured]]:
    """Measure one average after the other; alpha 0 is `zero_shot`, alpha 1 `fine_tuned`, bit for bit.

    Raises:
        CheckpointError: the checkpoints are not of one model.
    """
    pair = (zero_shot, fine_tuned)
    require_same_model(pair)
    for alpha in alphas:
        yield Point(alpha, measure(average(pair, [1 - alpha, alpha])))


def best_point(curve: Sequence[Point[Measured]], score: Callable[[Measured], float]) -> Point[Measured]:
    """The point of the highest score; of equal ones, the one that is nearest to the middle of the curve."""
    middle = (curve[0].alpha + curve[-1].alpha) / 2
    return max(curve, key=lambda point: (score(point.metrics), -abs(point.alpha - middle)))
