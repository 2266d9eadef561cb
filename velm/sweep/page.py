"""report.html of a sweep: the metric by trial and by each parameter, and the table; it needs no network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from velm.report.assets import asset
from velm.report.curves import Points, drawn
from velm.sweep.results import ordered
from velm.sweep.study import short_names, shown
from velm.version import __version__

__all__ = ["write_page"]


def write_page(folder: Path, results: Mapping[str, Any]) -> Path:
    """Write report.html in the folder of a sweep."""
    best = results["best"]
    facts = f"{len(results['trials'])} trials, {results['direction']} <b>{escape(results['metric'])}</b>"
    if best is not None:
        facts += f" · best <b>{best['value']:.4f}</b> by trial {best['number']}"
    page = asset(
        "sweep.html",
        title=escape(folder.name),
        style=asset("report.css"),
        facts=facts,
        charts="".join(_charts(results)),
        rows=_rows(results),
        version=escape(__version__),
    )
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8", errors="replace")
    return path


def _charts(results: Mapping[str, Any]) -> list[str]:
    """A figure of the metric by trial, and one for each parameter."""
    rows = [row for row in results["trials"] if row["value"] is not None]
    if not rows:
        return []
    better = max if results["direction"] == "maximize" else min
    points: Points = [(row["number"], row["value"]) for row in rows]
    done: Points = [(row["number"], row["value"]) for row in rows if row["state"] == "complete"]
    reached = [(number, better(value for _, value in done[: i + 1])) for i, (number, _) in enumerate(done)]
    lines = {"trials": points, **({"best": reached} if reached else {})}
    ends = (f"trial {points[0][0]:.0f}", f"trial {points[-1][0]:.0f}")
    figures = [_figure(f"{results['metric']} by trial", lines, ends, "line: best complete trial so far")]
    names = short_names(dict.fromkeys(name for row in rows for name in row["parameters"]))
    importance = results["importance"]
    for name in sorted(names, key=lambda name: -importance.get(name, 0.0)):
        pairs = [(row["parameters"][name], row["value"]) for row in rows if name in row["parameters"]]
        share = f", importance {importance[name]:.0%}" if name in importance else ""
        figures.append(_by_parameter(f"{names[name]}{share}", pairs))
    return figures


def _by_parameter(title: str, pairs: Sequence[tuple[Any, float]]) -> str:
    """Values of the metric over those of a parameter: on a line for numbers, by position for anything else."""
    values = [value for value, _ in pairs]
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        low, high = min(values), max(values)
        log = low > 0 and high / low > 20
        points = [(math.log(value) if log else value, metric) for value, metric in pairs]
        return _figure(title, {"": points}, (f"{low:.4g}", f"{high:.4g}{' (log)' if log else ''}"))
    texts = list(dict.fromkeys(map(shown, values)))
    points = [(texts.index(shown(value)), metric) for value, metric in pairs]
    key = " · ".join(f"{number} = {text}" for number, text in enumerate(texts))
    return _figure(title, {"": points}, ("0", str(len(texts) - 1)), key)


def _figure(title: str, lines: Mapping[str, Points], ends: tuple[str, str], key: str = "") -> str:
    drawing = drawn(lines, ends, marks=True)
    return (
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption>'
        f'<svg viewBox="0 0 320 150" role="img" aria-label="{escape(title)}">{drawing}</svg>'
        f'<div class="keys">{escape(key)}</div></figure>'
    )


def _rows(results: Mapping[str, Any]) -> str:
    """The trials as the rows of a table, the best first."""
    names = short_names(dict.fromkeys(name for row in results["trials"] for name in row["parameters"]))
    head = "".join(f"<th>{escape(each)}</th>" for each in ["trial", "state", results["metric"], *names.values(), ""])
    lines = [f"<thead><tr>{head}</tr></thead><tbody>"]
    for row in ordered(results):
        value = "" if row["value"] is None else f"{row['value']:.4f}"
        parameters = [shown(row["parameters"][name]) if name in row["parameters"] else "" for name in names]
        cells = [str(row["number"]), row["state"], value, *parameters, row["cause"]]
        lines.append(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>")
    return "".join([*lines, "</tbody>"])
