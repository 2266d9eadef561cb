"""The metrics of a report as HTML: headline tiles and tables with intervals. All data is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from velm.evaluation.blind import BLIND
from velm.evaluation.bootstrap import Interval, differences, intervals
from velm.report.panels import EvaluatedModel

HEADLINE = {
    "image_to_text/recall@1": "Image to text, recall@1",
    "text_to_image/recall@1": "Text to image, recall@1",
    "caption/cider": "CIDEr-D",
    "caption/bleu4": "BLEU-4",
    "caption/exact_match": "Exact match",
}
GROUPS = {
    "image_to_text": "Image to text",
    "text_to_image": "Text to image",
    "caption": "Captions",
    "compositional": "Compositional",
    "zero_shot": "Zero-shot",
    "reranked": "Reranked",
}


def tiles(model: EvaluatedModel) -> str:
    """The headline metrics with their intervals."""
    metrics, ranges = model.evaluation.metrics, intervals(model.draws)
    return "".join(
        f'<div class="tile"><div class="name">{escape(title)}</div><div class="value">{metrics[name]:.3f}</div>'
        f'<div class="range">{f"95% {_range(name, ranges[name])}" if name in ranges else ""}</div>'
        f"{_blind(name, model)}</div>"
        for name, title in HEADLINE.items()
        if name in metrics
    )


def metrics_table(models: Sequence[EvaluatedModel], names: Sequence[str]) -> str:
    """The named metrics in groups, with intervals; for two models also the difference, second minus first.

    A metric without the image stands below the same one with it.
    """
    names = [name for name in names if not (name.startswith(BLIND) and name.removeprefix(BLIND) in names)]
    if not names:
        return ""
    ranges = [intervals(model.draws) for model in models]
    apart = differences(models[0].draws, models[1].draws) if len(models) > 1 else {}
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.split("/")[0] if "/" in name else "other", []).append(name)
    head = (
        ["", "value", "95% interval", ""]
        if len(models) == 1
        else ["", '<span class="a">A</span>', '<span class="b">B</span>', "B − A", "95% interval", ""]
    )
    cells = "".join(f"<th>{cell}</th>" for cell in head)
    parts = [f'<div class="scroll"><table><thead><tr>{cells}</tr></thead>']
    for group, members in groups.items():
        title = escape(GROUPS.get(group, group))
        rows = [_row(name, models, ranges, apart) for name in members]
        parts.append(f'<tbody class="group"><tr><th colspan="{len(head)}">{title}</th></tr>{"".join(rows)}</tbody>')
    return "".join([*parts, "</table></div>"])


def confused_words_table(words: Sequence[tuple[str, str, int]]) -> str:
    """Reference words and the words generated instead, with a bar for the frequency."""
    if not words:
        return ""
    most = max(times for *_, times in words)
    rows = "".join(
        f"<tr><td>{escape(right)}</td><td>{escape(wrong)}</td><td>{times}</td>"
        f'<td class="bar"><div class="meter" style="width:{100 * times / most:.0f}%"></div></td></tr>'
        for right, wrong, times in words
    )
    head = "<thead><tr><th>reference</th><th>generated</th><th>times</th><th></th></tr></thead>"
    return f'<div class="scroll confused"><table>{head}<tbody>{rows}</tbody></table></div>'


def _row(
    name: str,
    models: Sequence[EvaluatedModel],
    ranges: Sequence[Mapping[str, Interval]],
    apart: Mapping[str, Interval],
) -> str:
    values = [model.evaluation.metrics.get(name) for model in models]
    title = f"<td><code>{escape(name)}</code></td>"
    shown = "".join(
        f'<td class="value">{"–" if value is None else _format(name, value)}{_blind(name, model)}</td>'
        for value, model in zip(values, models, strict=True)
    )
    bars = "".join(
        _bar(name, value, ranges[i].get(name), "b" if i else "a") for i, value in enumerate(values) if value is not None
    )
    if len(models) == 1:
        interval = _range(name, ranges[0][name]) if name in ranges[0] else "–"
        return f'<tr>{title}{shown}<td class="range">{interval}</td><td class="bar">{bars}</td></tr>'
    first, second = values
    difference, interval = "–", "–"
    if first is not None and second is not None:
        difference = f"{second - first:+.3f}"
    if name in apart:
        low, high = apart[name]
        interval = f"{low:+.3f} … {high:+.3f}"
        if low > 0 or high < 0:  # significant: the interval excludes 0
            better = (low > 0) != name.endswith("rank")
            difference = f'<span class="{"up" if better else "down"}">{difference}</span>'
    return f'<tr>{title}{shown}<td>{difference}</td><td class="range">{interval}</td><td class="bar">{bars}</td></tr>'


def _blind(name: str, model: EvaluatedModel) -> str:
    """The same metric without the image, if it is known."""
    value = model.evaluation.metrics.get(f"{BLIND}{name}")
    return "" if value is None else f'<div class="blind">blind {_format(name, value)}</div>'


def _bar(name: str, value: float, interval: Interval | None, model: str) -> str:
    """A metric of [0, 1] and its interval on a line; nothing for other scales."""
    if name.endswith("rank") or not 0 <= value <= 1 or (interval is not None and interval[1] > 1):
        return ""
    low, high = (value, value) if interval is None else interval
    span = f'<i class="span" style="left:{100 * low:.1f}%;width:{100 * (high - low):.1f}%"></i>'
    dot = f'<i class="dot" style="left:{100 * value:.1f}%"></i>'
    return f'<div class="track {model}"><i></i>{span}{dot}</div>'


def _format(name: str, value: float) -> str:
    return f"{value:.0f}" if name.endswith("median_rank") else f"{value:.3f}"


def _range(name: str, interval: Interval) -> str:
    return " … ".join(_format(name, bound) for bound in interval)
