"""Metrics that are computed only on request, because they cost time or need more than the split and the model."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from velm import metrics
from velm.data.base import Record
from velm.errors import DataError, JavaMissingError, PipelineError
from velm.evaluation.blind import blind_metrics, check_blind
from velm.evaluation.clip_score import check_clip_score, check_judge, clip_score_metrics, judge_metrics
from velm.evaluation.compositional import compositional_metrics
from velm.evaluation.encoding import MAX_BAD
from velm.evaluation.predictions import Captions, Predictions
from velm.evaluation.probing import probe_metrics
from velm.evaluation.prompts import ClassNames, Templates
from velm.evaluation.zero_shot import DEFAULT, class_words, has_classes, require_classes, zero_shot_metrics
from velm.metrics.java import require_java
from velm.metrics.retrieval import check_folds
from velm.pipeline import Pipeline

_JAVA = ("meteor", "spice")


@dataclass(frozen=True, kw_only=True)
class Extras:
    """Metrics to compute beside recall and the caption metrics.

    Attributes:
        folds: `folds/...`: mean of the retrieval metrics over so many folds of the images; None: not computed.
        clip_score: `caption/clip_score`, `caption/ref_clip_score`: by the model's own embeddings.
        judge: `judged/clip_score`, `judged/ref_clip_score`: by the embeddings of this model.
        novelty: `caption/novel`: fraction of the captions that do not occur in `train`.
        meteor: `caption/meteor`, by pycocoevalcap and Java.
        spice: `caption/spice`, likewise.
        compositional: `compositional/...`: captions against hard negatives.
        templates: prompts of zero-shot classification, with {} for the class; None: `zero_shot.DEFAULT`. The
            `zero_shot/...` metrics are computed whenever the records have classes and the model aligns.
        class_names: words for the classes, by folder or in the order of the sorted folders; None: the data has them.
        blind: `blind/caption/...`: the caption metrics with an image without content.
        probe: `linear_probe/top1`, `nearest_neighbours/top1`: classifiers fitted on the features of `train`.
        train: the training records, for `novelty` and `probe`.
    """

    folds: int | None = None
    clip_score: bool = False
    judge: Pipeline | None = None
    novelty: bool = False
    meteor: bool = False
    spice: bool = False
    compositional: bool = False
    blind: bool = False
    templates: Templates | Sequence[str] | None = None
    class_names: ClassNames | Mapping[str, str] | Sequence[str] | None = None
    probe: bool = False
    train: Sequence[Record] | None = None


def check_extras(extras: Extras, pipeline: Pipeline, records: Sequence[Record]) -> None:
    """Raise if the model, the data or the machine lacks what a requested metric needs; computes nothing.

    Raises:
        PipelineError, DataError: what is missing.
    """
    try:
        if extras.folds is not None:
            check_folds(extras.folds, len(records))
        for name in _JAVA:
            if getattr(extras, name):
                require_java(name.upper(), f"{name}.{name}")
    except (ValueError, JavaMissingError) as error:
        raise PipelineError(str(error)) from error
    asked = extras.templates is not None or extras.class_names is not None
    if extras.folds is not None or extras.compositional or asked:
        pipeline.require_alignment()
    if extras.blind:
        check_blind(pipeline)
    if extras.clip_score:
        check_clip_score(pipeline)
    if extras.judge is not None:
        check_judge(pipeline, extras.judge)
    if extras.novelty or extras.meteor or extras.spice:
        pipeline.require_decoder()
    if extras.probe or asked:
        names, _ = require_classes(records)
        class_words(records, names, extras.class_names)
    if extras.templates is not None:
        Templates.of(extras.templates)
    if (extras.novelty or extras.probe) and not extras.train:
        raise DataError("novelty and probe compare with the training data: give train, the records of that split.")


def extra_metrics(
    extras: Extras,
    pipeline: Pipeline,
    records: Sequence[Record],
    predictions: Predictions,
    *,
    tokenize: str = "auto",
    batch_size: int = 64,
    max_bad: float = MAX_BAD,
    generation: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """The metrics by the keys of metrics.json; call `check_extras` first. `generation`: options of the captions."""
    values: dict[str, float] = {}
    retrieval, captions = predictions.retrieval, predictions.captions
    if retrieval is not None and extras.folds is not None:
        embeds = retrieval.image_embeds, retrieval.text_embeds
        folds = metrics.fold_metrics(*embeds, retrieval.image_ids, folds=extras.folds)
        values |= {f"folds/{name}": value for name, value in folds.items()}
    if captions is not None:
        if extras.blind:
            config = pipeline.generation_config(**generation or {})
            values |= blind_metrics(pipeline, captions, config, tokenize=tokenize, batch_size=batch_size)
        if extras.clip_score and retrieval is not None:
            values |= clip_score_metrics(pipeline, captions, retrieval.image_embeds)
        if extras.judge is not None:
            values |= judge_metrics(pipeline, captions, judge=extras.judge, records=records, batch_size=batch_size)
        if extras.novelty and extras.train is not None:
            values |= novelty_metrics(captions, extras.train, tokenize)
        values |= _java_metrics(captions, [name for name in _JAVA if getattr(extras, name)], tokenize)
    prompts = zero_shot_protocol(extras, records, predictions)
    if retrieval is not None and prompts:
        values |= zero_shot_metrics(pipeline, records, retrieval.image_embeds, **prompts)
    if extras.probe and extras.train is not None:
        values |= probe_metrics(pipeline, extras.train, records, batch_size=batch_size, max_bad=max_bad)
    if extras.compositional and retrieval is not None:
        values |= compositional_metrics(pipeline, records, retrieval, batch_size=batch_size)
    return values


def zero_shot_protocol(extras: Extras, records: Sequence[Record], predictions: Predictions) -> dict[str, Any]:
    """`templates` and `class_names` of zero-shot classification; nothing where it is not computed."""
    if predictions.retrieval is None or not has_classes(records):
        return {}
    templates = DEFAULT if extras.templates is None else Templates.of(extras.templates)
    names = None if extras.class_names is None else ClassNames.of(extras.class_names)
    return {"templates": templates, "class_names": names}


def novelty_metrics(captions: Captions, train: Sequence[Record], tokenize: str = "auto") -> dict[str, float]:
    """`caption/novel`: fraction of the captions that are no target (or text, without targets) of a training record."""
    known = (text for record in train for text in record.targets or record.texts)
    return {"caption/novel": metrics.novelty(captions.texts, known, tokenize=tokenize)}


def _java_metrics(captions: Captions, names: Sequence[str], tokenize: str) -> dict[str, float]:
    values: dict[str, float] = {}
    for name in names:
        try:
            score = getattr(metrics, name)(captions.texts, captions.references, tokenize=tokenize)
            values[f"caption/{name}"] = score
        except JavaMissingError as error:  # the other metrics are still worth having
            warnings.warn(str(error), stacklevel=2)
    return values
