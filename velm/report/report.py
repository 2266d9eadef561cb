"""Writes the report: one HTML file with metrics and examples that needs no network.

Captions and names are untrusted text: Python escapes what it writes, the page's script inserts text nodes only, the
data is JSON without '<', and a content security policy forbids everything outside the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from velm.data.base import Record
from velm.data.images.transforms import Resize
from velm.evaluation.bootstrap import differences, intervals, resample
from velm.evaluation.confusions import confused_words
from velm.evaluation.evaluate import Evaluation
from velm.metrics.captioning import caption_scores
from velm.report.assets import asset
from velm.report.curves import charts, read_curves
from velm.report.panels import EvaluatedModel, caption_panels, confusion_panels, retrieval_panels
from velm.report.tables import confused_words_table, metrics_table, tiles
from velm.report.thumbnails import Thumbnails, count_images
from velm.version import __version__

CONFUSED_WORDS = 12
UNREADABLE = 50  # unreadable images that are listed


def evaluated_model(name: str, evaluation: Evaluation, *, seed: int = 0) -> EvaluatedModel:
    """Score the captions of an evaluation one by one and resample its metrics."""
    predictions = evaluation.predictions
    captions = predictions.captions
    scores = None
    if captions and captions.rows:
        scores = caption_scores(captions.texts, captions.references, tokenize=evaluation.tokenize)
    return EvaluatedModel(name, evaluation, scores, resample(predictions, evaluation.ranks, scores, seed=seed))


def write_report(
    folder: Path,
    models: Sequence[EvaluatedModel],
    records: Sequence[Record],
    *,
    split: str,
    resize: Resize = "crop",
    unreadable: Sequence[str] = (),
) -> None:
    """Write report.html and intervals.json; for two models also comparison.json.

    Args:
        models: one model or two to compare, named by the paths of their checkpoints.
        resize: that of the first model's transform.
        unreadable: the cause for each unreadable image.
    """
    curves = charts(read_curves(Path(models[0].name).parent / "metrics.csv"))
    page = render(models, Thumbnails(records, resize), split=split, curves=curves, unreadable=unreadable)
    (folder / "report.html").write_text(page, encoding="utf-8", errors="replace")
    _write_json(folder / "intervals.json", _lists(intervals(models[0].draws)))
    if len(models) > 1:
        first, second = models
        content = {
            "checkpoint": second.name,
            "figures": second.evaluation.metrics | second.evaluation.signature,
            "differences": _lists(differences(first.draws, second.draws)),
        }
        _write_json(folder / "comparison.json", content)


def render(
    models: Sequence[EvaluatedModel],
    thumbnails: Thumbnails,
    *,
    split: str,
    curves: Sequence[str] = (),
    unreadable: Sequence[str] = (),
) -> str:
    """The HTML page; `curves` are figure elements, `unreadable` the causes of `write_report`."""
    data = {
        "models": [model.name for model in models],
        "captions": caption_panels(models, thumbnails),
        "retrieval": retrieval_panels(models, thumbnails),
        "confusions": confusion_panels(models[0], thumbnails),
        "images": thumbnails.images(),
    }
    sections = _sections(models, data, curves)
    name = " against ".join(_short_name(model.name) for model in models)
    parts = {
        "title": escape(f"{name} on {split} – VELM"),
        "heading": escape(f"{name} on {split}"),
        "facts": _facts(models, count_images(thumbnails.records), split),
        "note": _unreadable_note(unreadable),
        "tiles": tiles(models[0]),
        "links": "".join(f'<a href="#{key}">{escape(title)}</a>' for key, (title, _) in sections.items()),
        "sections": "".join(
            f'<section id="{key}"><h2>{escape(title)}</h2>{body}</section>\n' for key, (title, body) in sections.items()
        ),
        "data": _json(data),
        "version": escape(__version__),
        "style": asset("report.css"),
        "script": asset("report.js"),
    }
    return asset("report.html", **parts)


def _sections(
    models: Sequence[EvaluatedModel], data: Mapping[str, Any], curves: Sequence[str]
) -> dict[str, tuple[str, str]]:
    """The sections that have content: id -> title and HTML."""
    metrics = models[0].evaluation.metrics
    compositional = [name for name in metrics if name.startswith("compositional/")]
    others = [name for name in metrics if name not in compositional]
    captions = models[0].evaluation.predictions.captions
    words = (
        confused_words_table(confused_words(captions.rows, CONFUSED_WORDS, models[0].evaluation.tokenize))
        if captions
        else ""
    )
    difference = '<option value="difference">Largest difference first</option>' if len(models) > 1 else ""
    bodies = {
        "metrics": ("Metrics", asset("metrics.html", table=metrics_table(models, others))),
        "compositional": ("Compositional", metrics_table(models, compositional)),
        "retrieval": ("Retrieval", asset("retrieval.html") if data["retrieval"] else ""),
        "captions": ("Captions", asset("captions.html", difference=difference) if data["captions"] else ""),
        "confusions": ("Confusions", asset("confusions.html") if data["confusions"] else ""),
        "words": ("Words", asset("words.html", table=words) if words else ""),
        "training": ("Training", f'<div class="charts">{"".join(curves)}</div>' if curves else ""),
    }
    return {key: (title, body) for key, (title, body) in bodies.items() if body}


def _short_name(name: str) -> str:
    """'quickstart/best' for 'runs/quickstart/best.ckpt'."""
    path = Path(name)
    return f"{path.parent.name}/{path.stem}".lstrip("/")


def _facts(models: Sequence[EvaluatedModel], count: str, split: str) -> str:
    retrieval = models[0].evaluation.predictions.retrieval
    texts = "" if retrieval is None else f" and {len(retrieval.texts):,} texts"
    names = [f"<b>{escape(model.name)}</b>" for model in models]
    if len(names) > 1:
        names = [f'<span class="a">A</span> {names[0]}', f'<span class="b">B</span> {names[1]}']
    return f"{' against '.join(names)} · {count}{texts} of <b>{escape(split)}</b>"


def _unreadable_note(causes: Sequence[str]) -> str:
    if not causes:
        return ""
    images = "1 image" if len(causes) == 1 else f"{len(causes):,} images"
    listed = "".join(f"<li>{escape(cause)}</li>" for cause in causes[:UNREADABLE])
    more = f"<li>and {len(causes) - UNREADABLE:,} more</li>" if len(causes) > UNREADABLE else ""
    summary = f"<summary>{images} could not be read and were left out</summary>"
    return f'<details class="note">{summary}<ul>{listed}{more}</ul></details>'


def _json(data: Any) -> str:
    """JSON for a script element: nothing in it can end the element or begin a comment."""
    content = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return content.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _lists(ranges: Mapping[str, tuple[float, float]]) -> dict[str, list[float]]:
    return {name: list(interval) for name, interval in ranges.items()}


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
