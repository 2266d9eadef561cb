"""Best and last value of each metric of each run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from velm.comparison.runs import Run
from velm.errors import ComparisonError
from velm.report.curves import Points

__all__ = ["HEADLINE", "Reading", "best_runs", "lower_is_better", "metric_names", "reading"]

HEADLINE = (
    "val/score", "val/loss", "val/contrastive", "val/sigmoid", "val/captioning", "val/image_to_text/recall@1",
    "val/text_to_image/recall@1", "val/caption/bleu4", "val/caption/cider", "val/caption/exact_match",
    "test/image_to_text/recall@1", "test/text_to_image/recall@1", "test/caption/cider", "train/loss",
)  # fmt: skip
"""The metrics that are shown if none are asked for."""


@dataclass(frozen=True)
class Reading:
    """A metric of a run.

    Attributes:
        best, step: the best value and its first step; None if neither direction is better.
        last: the last value.
    """

    best: float | None
    step: int | None
    last: float


def metric_names(runs: Sequence[Run], patterns: Sequence[str] = HEADLINE) -> list[str]:
    """The metrics that match a pattern ('val/*'), in the order of the patterns.

    Raises:
        ComparisonError: no metric matches.
    """
    known = sorted({name for run in runs for name in run.curves})
    names = dict.fromkeys(name for pattern in patterns for name in known if fnmatchcase(name, pattern))
    if not names and patterns is HEADLINE:
        names = dict.fromkeys(known)
    if not names:
        raise ComparisonError(
            f"--metrics {' '.join(patterns)} matches no metric of these runs. There are: {', '.join(known)}."
        )
    return list(names)


def lower_is_better(name: str, runs: Sequence[Run]) -> bool | None:
    """None: neither direction is better."""
    split, _, metric = name.partition("/")
    metric = metric.removeprefix("blind/")
    if metric.endswith(("length", "temperature")) or split not in ("train", "val", "test"):
        return None
    twin = "val" if split == "train" else "train"  # a loss is logged in both
    if metric == "loss" or metric.endswith("_rank") or any(f"{twin}/{metric}" in run.curves for run in runs):
        return True
    return None if split == "train" else False


def reading(line: Points, lower: bool | None) -> Reading:
    """The best and the last point of a curve."""
    last = line[-1][1]
    if lower is None:
        return Reading(None, None, last)
    step, best = min(line, key=lambda point: point[1] if lower else -point[1])
    return Reading(best, int(step), last)


def best_runs(values: Sequence[float | None], lower: bool | None) -> set[int]:
    """The indices of the runs with the best value; none if fewer than two have one, or all are equal."""
    known = [value for value in values if value is not None]
    if lower is None or len(known) < 2 or len(set(known)) == 1:
        return set()
    best = min(known) if lower else max(known)
    return {number for number, value in enumerate(values) if value == best}
