"""The comparison as one HTML file that needs no network and no script: tables, and the runs' curves overlaid.

Names and values are untrusted text and are escaped; a content security policy forbids everything outside the file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from velm.comparison.evaluations import EvaluationPair
from velm.comparison.metrics import best_runs, lower_is_better, reading
from velm.comparison.runs import Run
from velm.comparison.text import duration, number, option
from velm.report.assets import asset
from velm.report.curves import chart
from velm.version import __version__

__all__ = ["render"]

COLOURS = 10
FEW = 30
"""Points of a line that are drawn as circles too."""


def render(
    runs: Sequence[Run],
    differing: Mapping[str, Sequence[Any]],
    names: Sequence[str],
    pairs: Sequence[EvaluationPair],
) -> str:
    """The page.

    Args:
        runs: at least two.
        differing: `config_differences` of them.
        names: the metrics to show.
        pairs: evaluations of the runs.
    """
    bodies = {
        "runs": ("Runs", _facts(runs)),
        "configs": ("Configs", _configs(runs, differing)),
        "metrics": ("Metrics", _metrics(runs, names)),
        "curves": ("Curves", _curves(runs, names)),
        "evaluations": ("Evaluations", "".join(map(_pair, pairs))),
    }
    shown = {key: (title, body) for key, (title, body) in bodies.items() if body}
    title = escape(" against ".join(run.name for run in runs) if len(runs) < 4 else f"{len(runs)} runs")
    switches = "".join(
        f'<label class="key key{n}"><input type="checkbox" id="run{n}" checked>{escape(run.name)}</label>'
        for n, run in enumerate(runs)
    )
    return asset(
        "compare.html",
        style=asset("report.css") + asset("compare.css") + _colours(len(runs)),
        title=f"{title} – VELM",
        heading=title,
        runs=switches,
        links="".join(f'<a href="#{key}">{title}</a>' for key, (title, _) in shown.items()),
        version=escape(__version__),
        sections="".join(
            f'<section id="{key}"><h2>{title}</h2>{body}</section>\n' for key, (title, body) in shown.items()
        ),
    )


def _colours(count: int) -> str:
    """A colour for each run, dashed from the eleventh on; a run whose box is not ticked has no lines."""
    rules = []
    for n in range(count):
        colour = f"var(--c{n % COLOURS})"
        dash = f";stroke-dasharray:{2 + 2 * (n // COLOURS)} 3" if n >= COLOURS else ""
        rules.append(
            f".chart .line{n}{{stroke:{colour}{dash}}}.chart .mark.line{n}{{fill:{colour};stroke:none}}"
            f".key{n}::before{{background:{colour}}}body:has(#run{n}:not(:checked)) .line{n}{{display:none}}"
        )
    return "\n".join(rules)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """`head` is text; `rows` are td elements."""
    cells = "".join(f"<th>{escape(each)}</th>" for each in head)
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>'


def _code(text: str) -> str:
    return f"<td><code>{escape(text)}</code></td>"


def _facts(runs: Sequence[Run]) -> str:
    rows = [
        [
            f'<td><span class="key key{n}">{escape(run.name)}</span></td>',
            f"<td>{'–' if run.epochs is None else run.epochs}</td><td>{run.steps:,}</td>",
            f"<td>{duration(run.seconds)}</td>",
            _code(str(run.folder)),
        ]
        for n, run in enumerate(runs)
    ]
    return _table(["run", "epochs", "steps", "time", "folder"], rows)


def _configs(runs: Sequence[Run], differing: Mapping[str, Sequence[Any]]) -> str:
    if not differing:
        return '<p class="lead">The configs are the same.</p>'
    rows = [
        [_code(name), *(f'<td class="option">{escape(option(value))}</td>' for value in values)]
        for name, values in differing.items()
    ]
    return _table(["option", *(run.name for run in runs)], rows)


def _metrics(runs: Sequence[Run], names: Sequence[str]) -> str:
    rows = []
    for name in names:
        lower = lower_is_better(name, runs)
        readings = [reading(run.curves[name], lower) if name in run.curves else None for run in runs]
        winners = best_runs([None if each is None else each.best for each in readings], lower)
        row = [_code(name)]
        for n, each in enumerate(readings):
            best = "–" if each is None or each.best is None else number(each.best)
            step = "" if each is None or each.step is None else f' <span class="step">step {each.step + 1}</span>'
            last = "–" if each is None else number(each.last)
            row.append(f'<td class="{"best" if n in winners else ""}">{best}{step}</td><td>{last}</td>')
        rows.append(row)
    head = ["metric", *(title for run in runs for title in (f"{run.name}, best", "last"))]
    return _table(head, rows)


def _curves(runs: Sequence[Run], names: Sequence[str]) -> str:
    figures = []
    for name in names:
        lines = {run.name: run.curves.get(name, []) for run in runs}
        if any(len(line) > 1 for line in lines.values()):
            few = max(map(len, lines.values())) <= FEW
            figures.append(chart(name, lines, marks=few))
    return f'<div class="charts">{"".join(figures)}</div>' if figures else ""


def _pair(pair: EvaluationPair) -> str:
    rows = []
    for name, (first, second) in pair.metrics.items():
        interval = pair.intervals.get(name)
        tone = ""
        if interval is not None and (interval[0] > 0 or interval[1] < 0):
            tone = "up" if (interval[0] > 0) != name.endswith("rank") else "down"
        shown = "–" if interval is None else f"{interval[0]:+.4f} … {interval[1]:+.4f}"
        rows.append(
            [
                _code(name),
                f"<td>{number(first)}</td><td>{number(second)}</td>",
                f'<td><span class="{tone}">{second - first:+.4f}</span></td><td class="range">{shown}</td>',
            ]
        )
    head = ["metric", pair.first.name, pair.second.name, "difference", "95% interval"]
    title = f"{escape(pair.name)}: {escape(pair.second.name)} − {escape(pair.first.name)}."
    return f'<p class="lead">{title} {escape(pair.note)}</p>{_table(head, rows)}<br>'
