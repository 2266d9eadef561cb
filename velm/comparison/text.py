"""The comparison as text for a terminal, and as plain data for JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from velm.comparison.evaluations import EvaluationPair
from velm.comparison.metrics import best_runs, lower_is_better, reading
from velm.comparison.runs import Run

__all__ = ["as_data", "as_text", "duration", "number", "option"]

WIDEST = 40
"""Characters of a value of a config in the terminal."""


def number(value: float) -> str:
    """Four significant digits."""
    return f"{value:.4g}"


def option(value: Any) -> str:
    """A value of a config; '–' where a run has no such option."""
    return "–" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def duration(seconds: float | None) -> str:
    """'1:02:03'; '–' if unknown."""
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def as_text(
    runs: Sequence[Run], differing: Mapping[str, Sequence[Any]], names: Sequence[str], pairs: Sequence[EvaluationPair]
) -> str:
    """Aligned tables; the best run of a metric has a star."""
    rows = [
        ["", *(run.name for run in runs)],
        ["epochs", *("–" if run.epochs is None else str(run.epochs) for run in runs)],
        ["steps", *(f"{run.steps:,}" for run in runs)],
        ["time", *(duration(run.seconds) for run in runs)],
        [""],
        ["config" if differing else "The configs are the same."],
        *([name, *(_cut(option(value)) for value in values)] for name, values in differing.items()),
        [""],
        ["metric: best @ step, last"],
        *(_metric_row(name, runs) for name in names),
    ]
    return "\n".join([*_aligned(rows), *(line for pair in pairs for line in _pair_lines(pair))])


def as_data(
    runs: Sequence[Run], differing: Mapping[str, Sequence[Any]], names: Sequence[str], pairs: Sequence[EvaluationPair]
) -> dict[str, Any]:
    """{"runs": [...], "config": {option: [values]}, "evaluations": [...]}, for JSON."""
    return {
        "runs": [
            {
                "name": run.name,
                "folder": str(run.folder),
                "epochs": run.epochs,
                "steps": run.steps,
                "seconds": run.seconds,
                "metrics": {
                    name: vars(reading(run.curves[name], lower_is_better(name, runs)))
                    for name in names
                    if name in run.curves
                },
            }
            for run in runs
        ],
        "config": {name: list(values) for name, values in differing.items()},
        "evaluations": [
            {
                "name": pair.name,
                "runs": [pair.first.name, pair.second.name],
                "note": pair.note,
                "metrics": {
                    name: {
                        "values": [first, second],
                        "difference": second - first,
                        "interval": list(pair.intervals[name]) if name in pair.intervals else None,
                    }
                    for name, (first, second) in pair.metrics.items()
                },
            }
            for pair in pairs
        ],
    }


def _metric_row(name: str, runs: Sequence[Run]) -> list[str]:
    lower = lower_is_better(name, runs)
    readings = [reading(run.curves[name], lower) if name in run.curves else None for run in runs]
    winners = best_runs([None if each is None else each.best for each in readings], lower)
    cells = []
    for place, each in enumerate(readings):
        if each is None:
            cells.append("–")
        elif each.best is None or each.step is None:
            cells.append(number(each.last))
        else:
            star = "*" if place in winners else ""
            cells.append(f"{number(each.best)}{star} @ {each.step + 1}, {number(each.last)}")
    return [name, *cells]


def _pair_lines(pair: EvaluationPair) -> list[str]:
    rows = [["", pair.first.name, pair.second.name, "difference", "95% interval"]]
    for name, (first, second) in pair.metrics.items():
        interval = pair.intervals.get(name)
        shown = "–" if interval is None else f"{interval[0]:+.4f} ... {interval[1]:+.4f}"
        rows.append([name, number(first), number(second), f"{second - first:+.4f}", shown])
    note = f"  {pair.note}" if pair.note else ""
    return ["", f"{pair.name}: {pair.second.name} - {pair.first.name}{note}", *_aligned(rows)]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of one cell are titles and do not widen the first column."""
    table = [row for row in rows if len(row) > 1]
    widths = [max(len(row[place]) for row in table) for place in range(max(map(len, table)))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip() for row in rows]


def _cut(text: str) -> str:
    return text if len(text) <= WIDEST else f"{text[: WIDEST - 3]}..."
