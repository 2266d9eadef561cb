"""The report: one HTML file that needs no network, and shows what the figures are made of.

Captions and names are somebody's text: what Python writes is escaped, what the page's script writes goes in as text,
the data lies in JSON without a '<', and a content security policy forbids whatever is not in the file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from velm.data.base import Record
from velm.data.images.transforms import Resize
from velm.evaluation.bootstrap import differences, intervals, resampled
from velm.evaluation.confusions import swapped_words
from velm.evaluation.evaluate import Measured
from velm.evaluation.scores import caption_scores
from velm.report.curves import charts, read_curves
from velm.report.panels import Side, captions, confusions, retrieval
from velm.report.tables import figures_table, swaps_table, tiles
from velm.report.thumbnails import Album, counted
from velm.version import __version__

__all__ = ["render", "side", "write_report"]

SWAPS = 12
NAMED = 50  # images that could not be read


def side(name: str, measured: Measured, *, seed: int = 0) -> Side:
    """A checkpoint's part of a report: its captions scored one by one, its figures resampled."""
    written = measured.predictions.written
    scores = caption_scores(written) if written else None
    return Side(name, measured, scores, resampled(measured.predictions, measured.ranks, scores, seed=seed))


def write_report(
    folder: Path,
    sides: Sequence[Side],
    records: Sequence[Record],
    *,
    split: str,
    resize: Resize = "crop",
    left_out: Sequence[str] = (),
) -> None:
    """Write report.html and intervals.json; of two sides, also comparison.json.

    Args:
        folder: it is there.
        sides: one checkpoint, or two to be compared, named by their paths.
        records: that were predicted, without any that were left out.
        split: what they are called.
        resize: what the first model's transform takes of an image.
        left_out: what is wrong with each image that could not be read.
    """
    curves = charts(read_curves(Path(sides[0].name).parent / "metrics.csv"))
    page = render(sides, Album(records, resize), split=split, curves=curves, left_out=left_out)
    (folder / "report.html").write_text(page, encoding="utf-8", errors="replace")
    _write_json(folder / "intervals.json", _lists(intervals(sides[0].draws)))
    if len(sides) > 1:
        first, second = sides
        content = {
            "checkpoint": second.name,
            "figures": second.measured.figures,
            "differences": _lists(differences(first.draws, second.draws)),
        }
        _write_json(folder / "comparison.json", content)


def render(
    sides: Sequence[Side], album: Album, *, split: str, curves: Sequence[str] = (), left_out: Sequence[str] = ()
) -> str:
    """The page; `curves` are figure elements of training, `left_out` what is wrong with images that are not in it."""
    data = {
        "sides": [each.name for each in sides],
        "captions": captions(sides, album),
        "retrieval": retrieval(sides, album),
        "confusions": confusions(sides[0], album),
        "images": album.images(),
    }
    sections = _sections(sides, data, curves)
    name = _short(sides[0].name) + (f" against {_short(sides[1].name)}" if len(sides) > 1 else "")
    parts = {
        "title": escape(f"{name} on {split} – VELM"),
        "heading": escape(f"{name} on {split}"),
        "facts": _facts(sides, counted(album.records), split),
        "note": _note(left_out),
        "tiles": tiles(sides[0]),
        "links": "".join(f'<a href="#{key}">{escape(title)}</a>' for key, (title, _) in sections.items()),
        "sections": "".join(_section(key, title, body) for key, (title, body) in sections.items()),
        "data": _json(data),
        "version": escape(__version__),
        "style": _asset("report.css"),
        "script": _asset("report.js"),
    }
    return re.sub(r"\{\{ (\w+) \}\}", lambda match: parts[match[1]], _asset("report.html"))


def _sections(sides: Sequence[Side], data: Mapping[str, Any], curves: Sequence[str]) -> dict[str, tuple[str, str]]:
    """What there is to show: id -> title and HTML."""
    figures = sides[0].measured.figures
    compositional = [name for name in figures if name.startswith("compositional/")]
    others = [name for name in figures if name not in compositional]
    swaps = swaps_table(swapped_words(sides[0].measured.predictions.written or [], SWAPS))
    swaps = _asset("words.html").replace("{{ table }}", swaps) if swaps else ""
    apart = '<option value="apart">Furthest apart first</option>' if len(sides) > 1 else ""
    hardest = _asset("confusions.html") if data["confusions"] else ""
    bodies = {
        "figures": ("Figures", _asset("figures.html").replace("{{ table }}", figures_table(sides, others))),
        "compositional": ("Compositional", figures_table(sides, compositional)),
        "retrieval": ("Retrieval", _asset("retrieval.html") if data["retrieval"] else ""),
        "captions": ("Captions", _asset("captions.html").replace("{{ apart }}", apart) if data["captions"] else ""),
        "confusions": ("Confusions", hardest),
        "words": ("Words", swaps),
        "training": ("Training", f'<div class="charts">{"".join(curves)}</div>' if curves else ""),
    }
    return {key: (title, body) for key, (title, body) in bodies.items() if body}


def _section(key: str, title: str, body: str) -> str:
    return f'<section id="{key}"><h2>{escape(title)}</h2>{body}</section>\n'


def _short(name: str) -> str:
    """runs/quickstart/best.ckpt is quickstart/best."""
    path = Path(name)
    return f"{path.parent.name}/{path.stem}".lstrip("/")


def _facts(sides: Sequence[Side], count: str, split: str) -> str:
    found = sides[0].measured.predictions
    texts = "" if found.text_embeds is None else f" and {len(found.text_embeds):,} sentences"
    names = [f"<b>{escape(each.name)}</b>" for each in sides]
    if len(names) > 1:
        names = [f'<span class="a">A</span> {names[0]}', f'<span class="b">B</span> {names[1]}']
    return f"{' against '.join(names)} · {count}{texts} of <b>{escape(split)}</b>"


def _note(left_out: Sequence[str]) -> str:
    """What the figures lack."""
    if not left_out:
        return ""
    count = f"{len(left_out):,} image{'s' if len(left_out) > 1 else ''} could not be read and count nowhere"
    listed = "".join(f"<li>{escape(cause)}</li>" for cause in left_out[:NAMED])
    more = f"<li>and {len(left_out) - NAMED:,} more</li>" if len(left_out) > NAMED else ""
    return f'<details class="note"><summary>{count}</summary><ul>{listed}{more}</ul></details>'


def _asset(name: str) -> str:
    return (files("velm.report") / "page" / name).read_text(encoding="utf-8")


def _json(data: Any) -> str:
    """JSON that may stand inside a script element: nothing in it can end the element or begin a comment."""
    content = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return content.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _lists(found: Mapping[str, tuple[float, float]]) -> dict[str, list[float]]:
    return {name: list(interval) for name, interval in found.items()}


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
