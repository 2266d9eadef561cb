"""Evaluations that two runs have under one name: their metrics and paired bootstrap intervals of the differences."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from velm.comparison.runs import Run
from velm.errors import ComparisonError

if TYPE_CHECKING:
    from velm.evaluation.bootstrap import Draws

__all__ = ["EvaluationPair", "evaluation_pairs", "paired_draws"]

METRICS, RANKS, CAPTIONS = "metrics.json", "ranks.jsonl", "captions.jsonl"


@dataclass(frozen=True)
class EvaluationPair:
    """Two evaluations of the same name.

    Attributes:
        name: of the folder in both runs.
        first, second: the runs.
        metrics: name -> (of the first, of the second).
        intervals: 95% interval of second - first, resampled on the same images.
        note: why some metrics have no interval; '' if all have that can.
    """

    name: str
    first: Run
    second: Run
    metrics: Mapping[str, tuple[float, float]]
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    note: str = ""


def evaluation_pairs(runs: Sequence[Run]) -> list[EvaluationPair]:
    """The first run of each name of an evaluation folder with each later one.

    Raises:
        ComparisonError: a file of an evaluation cannot be read.
    """
    found = [_evaluations(run.folder) for run in runs]
    pairs = []
    for name in dict.fromkeys(name for each in found for name in each):
        owners = [number for number, each in enumerate(found) if name in each]
        pairs += [_pair(name, runs[owners[0]], runs[other]) for other in owners[1:]]
    return [pair for pair in pairs if pair.metrics]


def _evaluations(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if (path / METRICS).is_file())


def _pair(name: str, first: Run, second: Run) -> EvaluationPair:
    folders = (first.folder / name, second.folder / name)
    one, two = (_json(folder / METRICS) for folder in folders)
    metrics = {key: (one[key], two[key]) for key in one if key in two and not key.startswith("signature/")}
    draws, notes = paired_draws(*folders)
    from velm.evaluation.bootstrap import differences

    intervals = {key: value for key, value in differences(*draws).items() if key in metrics}
    if not intervals and not notes:
        notes.append(f"Neither has {RANKS} or {CAPTIONS}: run velm evaluate again for intervals.")
    return EvaluationPair(name, first, second, metrics, intervals, " ".join(notes))


def paired_draws(first: Path, second: Path) -> tuple[tuple[Draws, Draws], list[str]]:
    """Bootstrap draws of two evaluations; draw i has the same images in both, see `velm.evaluation.bootstrap`.

    Args:
        first, second: folders that `velm evaluate` wrote.

    Returns:
        metric -> float64 (RESAMPLES,) of each, of what both can be resampled for; and why something cannot.

    Raises:
        ComparisonError: a file cannot be read.
    """
    folders = (first, second)
    words = [_tokenization(_json(folder / METRICS)) for folder in folders]
    draws: tuple[Draws, Draws] = ({}, {})
    notes = []
    for file, draw in ((RANKS, _rank_draws), (CAPTIONS, _caption_draws)):
        rows = [_lines(folder / file) for folder in folders]
        if rows[0] is None or rows[1] is None:
            notes += [] if rows == [None, None] else [f"Only one has {file}."]
        elif [_key(row) for row in rows[0]] != [_key(row) for row in rows[1]]:
            notes.append(f"Their {file} are of other images or texts.")
        elif file == CAPTIONS and words[0] != words[1]:
            notes.append(f"The words of captions are those of {words[0]!r} and of {words[1]!r}.")
        else:
            for number, each in enumerate(rows):
                draws[number].update(draw(each or [], words[0]))
    return draws, notes


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What must be equal in two evaluations for their rows to be a pair."""
    texts = row.get("text_to_image")
    return row["image_id"], row.get("text"), row.get("references"), None if texts is None else len(texts)


def _rank_draws(rows: Sequence[Mapping[str, Any]], tokenize: str) -> Draws:
    import torch

    from velm.evaluation.bootstrap import resample
    from velm.evaluation.predictions import Predictions, Retrieval
    from velm.metrics.retrieval import RetrievalRanks

    owner = torch.tensor([number for number, row in enumerate(rows) for _ in row["text_to_image"]])
    ranks = RetrievalRanks(
        torch.tensor([row["image_to_text"] for row in rows]),
        torch.tensor([rank for row in rows for rank in row["text_to_image"]]),
    )
    none = torch.empty(0)
    return resample(Predictions(Retrieval(none, none, owner, ())), {"": ranks}, None)


def _caption_draws(rows: Sequence[Mapping[str, Any]], tokenize: str) -> Draws:
    from velm.evaluation.bootstrap import resample
    from velm.evaluation.predictions import Captions, GeneratedCaption, Predictions
    from velm.metrics.captioning import caption_scores

    captions = Captions(
        [GeneratedCaption(row["image_id"], row.get("text"), row["caption"], tuple(row["references"])) for row in rows]
    )
    scores = caption_scores(captions.texts, captions.references, tokenize=tokenize)
    return resample(Predictions(captions=captions), {}, scores)


def _tokenization(metrics: Mapping[str, float]) -> str:
    start = "signature/tokenize:"
    return next((key.removeprefix(start) for key in metrics if key.startswith(start)), "auto")


def _lines(path: Path) -> list[dict[str, Any]] | None:
    """The rows of a .jsonl; None if there is no such file."""
    if not path.is_file():
        return None
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] or None
    except (OSError, ValueError) as error:
        raise ComparisonError(f"{path} cannot be read: {error}. Run velm evaluate again.") from None


def _json(path: Path) -> dict[str, float]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ComparisonError(f"{path} cannot be read: {error}. Run velm evaluate again.") from None
