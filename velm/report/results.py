"""Writes the results of an evaluation as JSON: metrics.json, captions.jsonl, unreadable.jsonl."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from velm.data.bad_samples import BadSample
from velm.evaluation.evaluate import Evaluation


def write_results(folder: Path, evaluation: Evaluation, unreadable: Iterable[BadSample]) -> None:
    """Write metrics.json, captions.jsonl (of captioners), ranks.jsonl (of aligners) and unreadable.jsonl (if any is).

    metrics.json also states the tokenization of captions, as the key 'signature/tokenize:<name>'.

    A line of captions.jsonl has image_id, text (what the decoder attended to, if any), caption, references; a line of
    ranks.jsonl has image_id, the rank of the image's nearest own text and, of each of its texts, the rank of the image;
    a line of unreadable.jsonl has path and cause.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(
        json.dumps(evaluation.metrics | evaluation.signature, indent=2) + "\n", encoding="utf-8"
    )
    captions = evaluation.predictions.captions
    if captions is not None:
        rows = [{key: value for key, value in asdict(row).items() if value not in (None, ())} for row in captions.rows]
        _write_lines(folder / "captions.jsonl", rows)
    if evaluation.predictions.retrieval is not None:
        _write_lines(folder / "ranks.jsonl", _ranks(evaluation))
    (folder / "unreadable.jsonl").unlink(missing_ok=True)
    bad = [{"path": sample.path, "cause": sample.cause} for sample in unreadable]
    if bad:
        _write_lines(folder / "unreadable.jsonl", bad)


def _ranks(evaluation: Evaluation) -> list[dict[str, Any]]:
    retrieval, ranks = evaluation.predictions.retrieval, evaluation.ranks[""]
    assert retrieval is not None
    rows: list[dict[str, Any]] = [
        {"image_id": record.image_id, "image_to_text": rank, "text_to_image": []}
        for record, rank in zip(evaluation.records, ranks.image_to_text.tolist(), strict=True)
    ]
    for owner, rank in zip(retrieval.image_ids.tolist(), ranks.text_to_image.tolist(), strict=True):
        rows[owner]["text_to_image"].append(rank)
    return rows


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8", errors="replace")
