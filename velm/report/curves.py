"""Training curves: the columns of metrics.csv as small drawings, SVG without a library."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path

__all__ = ["charts", "read_curves"]

Points = list[tuple[float, float]]
Place = Callable[[float, float], tuple[float, float]]
WIDTH, HEIGHT = 320, 150
LEFT, RIGHT, TOP, BOTTOM = 44, 8, 8, 22  # margins, in units of the drawing
FEW = 240  # points of a line; more cannot be told apart at this size

CHARTS: dict[str, tuple[str, ...]] = {
    "loss": ("train/loss", "val/loss"),
    "contrastive loss": ("train/contrastive", "val/contrastive"),
    "captioning loss": ("train/captioning", "val/captioning"),
    "recall@1": ("val/image_to_text/recall@1", "val/text_to_image/recall@1"),
    "BLEU-4 and exact match": ("val/caption/bleu4", "val/caption/exact_match"),
    "CIDEr-D": ("val/caption/cider",),
}


def read_curves(path: Path) -> dict[str, Points]:
    """Columns of a metrics.csv as points (step, value); {} where there is no such file, or nothing to read in it."""
    try:
        rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    except (OSError, ValueError, csv.Error):  # no file, no text, no table
        return {}
    curves: dict[str, Points] = {}
    for row in rows:
        step = _number(row.get("step"))
        for name, text in row.items():
            value = _number(text)
            if step is not None and value is not None and name not in ("step", "epoch"):
                curves.setdefault(name, []).append((step, value))
    return curves


def charts(curves: Mapping[str, Points]) -> list[str]:
    """A figure element for each of CHARTS that has a line of two points or more."""
    found = []
    for title, names in CHARTS.items():
        lines = {name: curves[name] for name in names if len(curves.get(name, ())) > 1}
        if lines:
            found.append(_chart(title, lines))
    return found


def _number(text: object) -> float | None:
    try:
        value = float(str(text))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _chart(title: str, lines: Mapping[str, Points]) -> str:
    points = [point for line in lines.values() for point in line]
    x0, x1 = min(x for x, _ in points), max(x for x, _ in points)
    y0, y1 = min(y for _, y in points), max(y for _, y in points)
    y0, y1 = (y0, y1) if y1 > y0 else (y0 - 0.5, y0 + 0.5)
    x1 = x1 if x1 > x0 else x0 + 1

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT)
        return across, TOP + (y1 - y) / (y1 - y0) * (HEIGHT - TOP - BOTTOM)

    drawn = [_axis(place, (y0, (y0 + y1) / 2, y1), x0, x1)]
    keys = []
    for number, (name, line) in enumerate(lines.items()):
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in (place(*point) for point in _thinned(line)))
        drawn.append(f'<polyline class="line line{number}" points="{path}"/>')
        keys.append(f'<span class="key key{number}">{escape(name)} <b>{line[-1][1]:.3g}</b></span>')
    return (
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)} over steps">{"".join(drawn)}</svg>'
        f'<div class="keys">{"".join(keys)}</div></figure>'
    )


def _axis(place: Place, ticks: Sequence[float], x0: float, x1: float) -> str:
    parts = []
    for tick in ticks:
        y = place(x0, tick)[1]
        parts.append(f'<line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{tick:.3g}</text>')
    parts.append(f'<text x="{LEFT}" y="{HEIGHT - 6}">{x0:.0f}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 6}" text-anchor="end">step {x1:.0f}</text>')
    return "".join(parts)


def _thinned(line: Points) -> Points:
    every = max(1, math.ceil(len(line) / FEW))
    kept = line[::every]
    return kept if kept[-1] == line[-1] else [*kept, line[-1]]
