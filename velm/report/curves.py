"""Training curves of metrics.csv as inline SVG."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from html import escape
from pathlib import Path

Points = list[tuple[float, float]]
"""(step, value)"""
LEFT, RIGHT, TOP, BOTTOM = 44, 312, 8, 128  # edges of the plot in a drawing of 320 x 150
MAX_POINTS = 240  # per line; more cannot be distinguished at this size

CHARTS: dict[str, tuple[str, ...]] = {
    "loss": ("train/loss", "val/loss"),
    "contrastive loss": ("train/contrastive", "val/contrastive"),
    "captioning loss": ("train/captioning", "val/captioning", "val/blind/captioning"),
    "recall@1": ("val/image_to_text/recall@1", "val/text_to_image/recall@1"),
    "BLEU-4 and exact match": ("val/caption/bleu4", "val/caption/exact_match"),
    "CIDEr-D": ("val/caption/cider", "val/blind/caption/cider"),
}


def read_curves(path: Path) -> dict[str, Points]:
    """The columns of a metrics.csv as points; {} if there is no such file or it is no table."""
    try:
        rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    except (OSError, ValueError, csv.Error):
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
    """A figure element for each of CHARTS that has a line of at least two points."""
    groups = {title: {n: curves[n] for n in names if len(curves.get(n, ())) > 1} for title, names in CHARTS.items()}
    return [chart(title, lines) for title, lines in groups.items() if lines]


def _number(text: object) -> float | None:
    try:
        value = float(str(text))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def chart(title: str, lines: Mapping[str, Points], marks: bool = False) -> str:
    """A figure element of lines over steps, each with its name and last value.

    Args:
        lines: at least one has a point; one without points keeps its place in the order of colours.
        marks: draw the points too.
    """
    steps = [step for line in lines.values() for step, _ in line]
    labels = (f"{min(steps):.0f}", f"step {max(steps):.0f}")
    keys = [
        f'<span class="key key{number}">{escape(name)} <b>{line[-1][1]:.3g}</b></span>'
        for number, (name, line) in enumerate(lines.items())
        if line
    ]
    drawing = drawn(lines, labels, marks)
    return (
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption>'
        f'<svg viewBox="0 0 320 150" role="img" aria-label="{escape(title)} over steps">{drawing}</svg>'
        f'<div class="keys">{"".join(keys)}</div></figure>'
    )


def drawn(lines: Mapping[str, Points], labels: tuple[str, str], marks: bool = False) -> str:
    """SVG elements of lines in a common scale, with three ticks, in a drawing of 320 x 150.

    Args:
        lines: by name; at least one has a point.
        labels: of the left and the right end of the horizontal axis.
        marks: draw the points too.
    """
    steps, values = zip(*(point for line in lines.values() for point in line), strict=True)
    first, last, low, high = min(steps), max(steps), min(values), max(values)
    if low == high:
        low, high = low - 0.5, high + 0.5

    def x(step: float) -> float:
        return LEFT + (step - first) / ((last - first) or 1) * (RIGHT - LEFT)

    def y(value: float) -> float:
        return TOP + (high - value) / (high - low) * (BOTTOM - TOP)

    ends = [escape(label) for label in labels]
    svg = [f'<text x="{LEFT}" y="144">{ends[0]}</text><text x="{RIGHT}" y="144" text-anchor="end">{ends[1]}</text>']
    for tick in (low, (low + high) / 2, high):
        svg.append(f'<line class="rule" x1="{LEFT}" x2="{RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        svg.append(f'<text x="{LEFT - 6}" y="{y(tick) + 3.5:.1f}" text-anchor="end">{tick:.3g}</text>')
    for number, line in enumerate(lines.values()):
        if not line:
            continue
        shown = [*line[: -1 : -(-len(line) // MAX_POINTS)], line[-1]]
        points = [(f"{x(step):.1f}", f"{y(value):.1f}") for step, value in shown]
        svg.append(f'<polyline class="line line{number}" points="{" ".join(map(",".join, points))}"/>')
        if marks:
            svg += [f'<circle class="mark line{number}" cx="{across}" cy="{down}" r="2"/>' for across, down in points]
    return "".join(svg)
