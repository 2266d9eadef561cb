"""Metrics of a model on a split, by the keys of metrics.json."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from velm import metrics
from velm.data.bad_samples import BadSample
from velm.data.base import Record
from velm.evaluation.encoding import MAX_BAD, readable_records
from velm.evaluation.extras import Extras, check_extras, extra_metrics, zero_shot_protocol
from velm.evaluation.predictions import Predictions, predict
from velm.evaluation.reranking import check_rerank, rerank_candidates
from velm.evaluation.signature import signature_of
from velm.metrics.retrieval import RetrievalRanks, rank_metrics
from velm.pipeline import Pipeline
from velm.util import progress_bar

__all__ = ["Evaluation", "Extras", "evaluate", "measure", "measure_all", "prediction_metrics"]

NO_EXTRAS = Extras()
NO_GENERATION = ("texts_per_image", "captions", "attention", "progress")
"""The options of `predict` that are none of a `GenerationConfig`."""


@dataclass(frozen=True)
class Evaluation:
    """Metrics of a model on a split, and what they are computed from.

    Attributes:
        predictions: embeddings and captions.
        metrics: by the keys of metrics.json.
        ranks: retrieval ranks by key prefix: '' of the embeddings, 'reranked/'.
        records: the readable records.
        tokenize: tokenization of the caption metrics.
        signature: the protocol, as keys of metrics.json, whose values are numbers (`velm.evaluation.signature`).
    """

    predictions: Predictions
    metrics: dict[str, float]
    ranks: Mapping[str, RetrievalRanks] = field(default_factory=dict)
    records: Sequence[Record] = ()
    tokenize: str = "auto"
    signature: dict[str, float] = field(default_factory=dict)


def evaluate(pipeline: Pipeline, records: Sequence[Record], **options: Any) -> dict[str, float]:
    """The metrics of `measure`, which has the same options; a warning names unreadable records."""
    evaluation = measure(pipeline, records, **options)
    causes = [sample.cause for sample in evaluation.predictions.unreadable.values()]
    if causes:
        shown = ", ".join(causes[:3]) + (", ..." if len(causes) > 3 else "")
        warnings.warn(f"{len(causes):,} of {len(records):,} records are left out: {shown}", stacklevel=2)
    return evaluation.metrics


def measure(
    pipeline: Pipeline,
    records: Sequence[Record],
    *,
    rerank: int | None = None,
    extras: Extras = NO_EXTRAS,
    tokenize: str | None = None,
    batch_size: int = 64,
    max_bad: float = MAX_BAD,
    **options: Any,
) -> Evaluation:
    """Retrieval and caption metrics of a split, whichever the model supports, and any extra metrics asked for.

    The gallery holds all images and all texts; an image matches all of its texts. References of captions are the
    record's targets if it has any, else its texts. Unreadable images are left out and counted as `left_out`.

    Args:
        rerank: number of candidates per query that the captioner reorders, see `velm.evaluation.reranking`; None: no
            `reranked/...` metrics.
        extras: further metrics, e.g. `Extras(clip_score=True, folds=5)`.
        tokenize: tokenization of captions (`velm.metrics.tokenization`); None: that of the training.
        max_bad: fraction of the records, in [0, 1], that may be unreadable.
        **options: `texts_per_image`, `captions`, `attention` and `progress` of `velm.evaluation.predictions.predict`;
            fields of `velm.generation.GenerationConfig`: num_beams, max_length, ...

    Returns:
        an `Evaluation`; metrics are in [0, 1] unless the name says otherwise.

    Raises:
        DataError, PipelineError: the records or the model lack what a metric needs.
        BadDataError: more than `max_bad` of the records are unreadable.
    """
    if rerank is not None:
        check_rerank(pipeline, rerank)
    tokenize = pipeline.tokenization if tokenize is None else tokenize
    metrics.tokenize_by(tokenize)  # raises before anything is computed
    check_extras(extras, pipeline, records)
    predictions = predict(pipeline, records, batch_size=batch_size, max_bad=max_bad, **options)
    readable = readable_records(records, predictions.unreadable)
    retrieval = predictions.retrieval
    ranks: dict[str, RetrievalRanks] = {}
    if retrieval is not None:
        ranks[""] = metrics.retrieval_ranks(retrieval.image_embeds, retrieval.text_embeds, retrieval.image_ids)
        if rerank is not None:
            ranks["reranked/"] = rerank_candidates(pipeline, readable, retrieval, k=rerank, batch_size=batch_size)
    values = prediction_metrics(predictions, ranks.get(""), tokenize)
    if "reranked/" in ranks:
        values |= {f"reranked/{name}": value for name, value in rank_metrics(ranks["reranked/"]).items()}
    generation = {name: value for name, value in options.items() if name not in NO_GENERATION}
    sizes: dict[str, Any] = {"batch_size": batch_size, "max_bad": max_bad}
    values |= extra_metrics(extras, pipeline, readable, predictions, tokenize=tokenize, generation=generation, **sizes)
    signature = signature_of(
        transform=pipeline.transform,
        texts_per_image=options.get("texts_per_image"),
        tokenize=None if predictions.captions is None else tokenize,
        generation=generation,
        **zero_shot_protocol(extras, readable, predictions),
    )
    return Evaluation(predictions, values, ranks, readable, tokenize, signature)


def measure_all(
    pipelines: Sequence[Pipeline],
    records: Sequence[Record],
    *,
    extras: Extras = NO_EXTRAS,
    show_progress: bool = False,
    **options: Any,
) -> tuple[list[Evaluation], list[BadSample]]:
    """`measure` one or two models on the records that all of them can read.

    Returns:
        an evaluation per model and the unreadable records of all models, whose number is `left_out` of each.
    """
    for pipeline in pipelines:
        check_extras(extras, pipeline, records)  # of all models before anything is computed

    def measure_one(pipeline: Pipeline, records: Sequence[Record]) -> Evaluation:
        progress = progress_bar("image") if show_progress else None
        return measure(pipeline, records, extras=extras, progress=progress, **options)

    evaluations: list[Evaluation] = []
    for pipeline in pipelines:
        evaluations.append(measure_one(pipeline, evaluations[-1].records if evaluations else records))
    if len(evaluations[0].records) > len(evaluations[-1].records):  # only the second model reads images
        evaluations[0] = measure_one(pipelines[0], evaluations[-1].records)
    samples = [sample for each in evaluations for sample in each.predictions.unreadable.values()]
    unreadable = list(dict.fromkeys(samples))
    if unreadable:
        left_out = {"left_out": float(len(unreadable))}
        evaluations = [replace(each, metrics=each.metrics | left_out) for each in evaluations]
    return evaluations, unreadable


def prediction_metrics(
    predictions: Predictions, ranks: RetrievalRanks | None = None, tokenize: str = "auto"
) -> dict[str, float]:
    """The retrieval and caption metrics of predictions; `ranks` are computed if not given."""
    values: dict[str, float] = {}
    retrieval, captions = predictions.retrieval, predictions.captions
    if retrieval is not None:
        ranks = ranks or metrics.retrieval_ranks(retrieval.image_embeds, retrieval.text_embeds, retrieval.image_ids)
        values |= rank_metrics(ranks)
    if captions is not None:
        values |= metrics.caption_metrics(captions.texts, captions.references, tokenize=tokenize)
    if predictions.unreadable:
        values["left_out"] = float(len(predictions.unreadable))
    return values
