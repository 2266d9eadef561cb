"""Figures that are there only where they are asked for, because they cost time or need something more."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from velm import metrics
from velm.data.base import Record
from velm.errors import DataError, JavaMissingError, PipelineError
from velm.evaluation.caption_fit import check_clip_score, check_judge, clip_score_figures, novelty_figures
from velm.evaluation.compositional.metrics import compositional_figures
from velm.evaluation.predictions import Predictions
from velm.evaluation.probing import probe_figures
from velm.evaluation.reading import MAX_BAD
from velm.evaluation.zero_shot import TEMPLATES, check_templates, classes_of, require_classes, zero_shot_figures
from velm.metrics.folds import check_folds
from velm.metrics.java import require_java
from velm.pipeline import Pipeline

__all__ = ["Extras", "check_extras", "extra_figures"]

_JAVA = ("meteor", "spice")


@dataclass(frozen=True, kw_only=True)
class Extras:
    """What is asked for beside recall and the metrics of captions.

    Attributes:
        folds: `folds/...`: retrieval as the mean over so many folds of the images; None for none of it.
        clip_score: `caption/clip_score`, `caption/ref_clip_score`: by the model's own towers.
        judge: `judged/clip_score`, `judged/ref_clip_score`: by the towers of this model, whatever wrote the captions.
        novelty: `caption/novel`: share of the captions that `train` has not.
        meteor: `caption/meteor`, by pycocoevalcap and Java.
        spice: `caption/spice`, likewise.
        compositional: `compositional/...`: captions against the same with words exchanged.
        templates: prompts of zero-shot classification, with {} for the class; None: `zero_shot.TEMPLATES`. There are
            `zero_shot/...` figures wherever the records have classes and the model aligns.
        probe: `linear_probe/top1`, `nearest_neighbours/top1`: classes learnt from `train`.
        train: the records trained on, of which `novelty` and `probe` ask.
    """

    folds: int | None = None
    clip_score: bool = False
    judge: Pipeline | None = None
    novelty: bool = False
    meteor: bool = False
    spice: bool = False
    compositional: bool = False
    templates: Sequence[str] | None = None
    probe: bool = False
    train: Sequence[Record] | None = None


def check_extras(extras: Extras, pipeline: Pipeline, records: Sequence[Record]) -> None:
    """Raise, before anything is computed, where what is asked for cannot be had.

    Raises:
        PipelineError, DataError: the model, the data or the machine has not what it takes.
    """
    try:
        if extras.folds is not None:
            check_folds(extras.folds, len(records))
        for name in _JAVA:
            if getattr(extras, name):
                require_java(name.upper(), f"{name}.{name}")
    except (ValueError, JavaMissingError) as error:
        raise PipelineError(str(error)) from error
    if extras.folds is not None or extras.compositional or extras.templates is not None:
        pipeline.require_alignment()
    if extras.clip_score:
        check_clip_score(pipeline)
    if extras.judge is not None:
        check_judge(pipeline, extras.judge)
    if extras.novelty or extras.meteor or extras.spice:
        pipeline.require_decoder()
    if extras.probe or extras.templates is not None:
        require_classes(records)
    if extras.templates is not None:
        check_templates(extras.templates)
    if (extras.novelty or extras.probe) and not extras.train:
        raise DataError("novelty and probe compare with what was trained on: give train, the records of that split.")


def extra_figures(
    extras: Extras,
    pipeline: Pipeline,
    records: Sequence[Record],
    found: Predictions,
    *,
    batch_size: int = 64,
    max_bad: float = MAX_BAD,
) -> dict[str, float]:
    """The figures by the names of metrics.json, after `check_extras`.

    Args:
        extras: what is asked for.
        pipeline: the model.
        records: those that were predicted, without any that were left out.
        found: their predictions.
        batch_size: images at a time.
        max_bad: share of `train` that may be unreadable.
    """
    figures: dict[str, float] = {}
    if extras.folds is not None:
        folded = metrics.fold_metrics(found.image_embeds, found.text_embeds, found.image_ids, folds=extras.folds)
        figures |= {f"folds/{name}": value for name, value in folded.items()}
    if extras.clip_score:
        figures |= clip_score_figures(pipeline, found)
    if extras.judge is not None:
        figures |= clip_score_figures(pipeline, found, judge=extras.judge, records=records, batch_size=batch_size)
    if extras.novelty:
        assert extras.train is not None
        figures |= novelty_figures(found, extras.train)
    for name in _JAVA:
        if getattr(extras, name):
            figures |= _java_figure(name, found)
    if found.image_embeds is not None and classes_of(records) is not None:
        figures |= zero_shot_figures(pipeline, records, found.image_embeds, templates=extras.templates or TEMPLATES)
    if extras.probe:
        assert extras.train is not None
        figures |= probe_figures(pipeline, extras.train, records, batch_size=batch_size, max_bad=max_bad)
    if extras.compositional:
        figures |= compositional_figures(pipeline, records, found, batch_size=batch_size)
    return figures


def _java_figure(name: str, found: Predictions) -> dict[str, float]:
    """METEOR or SPICE; a warning where Java fails, so that the other figures are not lost."""
    assert found.written is not None
    captions, references = zip(*((row.caption, row.references) for row in found.written), strict=True)
    try:
        return {f"caption/{name}": getattr(metrics, name)(captions, references)}
    except JavaMissingError as error:
        warnings.warn(str(error), stacklevel=2)
        return {}
