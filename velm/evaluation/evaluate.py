"""How good a model is on a split: the figures of metrics.json."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from velm import metrics
from velm.data.base import Record
from velm.evaluation.extras import Extras, check_extras, extra_figures
from velm.evaluation.predictions import Predictions, Progress, predict
from velm.evaluation.reading import MAX_BAD, remaining
from velm.evaluation.reranking import check_rerank
from velm.evaluation.reranking import rerank as rerank_candidates
from velm.metrics.retrieval import RetrievalRanks
from velm.pipeline import Pipeline

__all__ = ["Extras", "Measured", "evaluate", "figures", "measure"]

NOTHING_MORE = Extras()


@dataclass(frozen=True)
class Measured:
    """A model on a split, with what its figures are made of.

    Attributes:
        predictions: what it said of every image.
        figures: by the names of metrics.json.
        ranks: what goes before the names of figures ('' for the embeddings, 'reranked/'), and the ranks themselves.
        records: those measured, which are all but `predictions.left_out`.
    """

    predictions: Predictions
    figures: dict[str, float]
    ranks: Mapping[str, RetrievalRanks] = field(default_factory=dict)
    records: Sequence[Record] = ()


def evaluate(
    pipeline: Pipeline,
    records: Sequence[Record],
    *,
    batch_size: int = 64,
    texts_per_image: int | None = None,
    rerank: int | None = None,
    extras: Extras = NOTHING_MORE,
    max_bad: float = MAX_BAD,
    progress: Progress | None = None,
    **options: Any,
) -> dict[str, float]:
    """Recall both ways and caption metrics of a split, whichever the model can do, and what is asked for beside them.

    Retrieval is over all images and all their texts, any of which is right for its image. Captions are held
    against the record's targets where it has any, else against its texts. An image that cannot be read is left out:
    a warning names it, and `left_out` counts them.

    Args:
        pipeline: what to measure.
        records: one an image.
        batch_size: images at a time.
        texts_per_image: sentences of an image, the first ones, that enter the gallery; None takes all. References
            of captions are always all of them.
        rerank: candidates of a query that the captioner puts in order, see `velm.evaluation.reranking`; None for no
            figures of this.
        extras: further figures, e.g. `Extras(clip_score=True, folds=5)`.
        max_bad: share of the records, in [0, 1], that may be left out.
        progress: called with (records done, records in all) after every batch.
        **options: fields of `velm.generation.GenerationConfig`: num_beams, max_length, ...

    Returns:
        figures by the names of metrics.json, in [0, 1] unless the name says otherwise.

    Raises:
        DataError, PipelineError: the records or the model have not what is asked for.
        BadDataError: more than `max_bad` of the records cannot be read.
    """
    measured = measure(
        pipeline,
        records,
        batch_size=batch_size,
        texts_per_image=texts_per_image,
        rerank=rerank,
        extras=extras,
        max_bad=max_bad,
        progress=progress,
        **options,
    )
    left_out = measured.predictions.left_out
    if left_out:
        shown = ", ".join(bad_sample.cause for bad_sample in list(left_out.values())[:3]) + (
            ", ..." if len(left_out) > 3 else ""
        )
        warnings.warn(f"{len(left_out):,} of {len(records):,} records are left out: {shown}", stacklevel=2)
    return measured.figures


def measure(
    pipeline: Pipeline,
    records: Sequence[Record],
    *,
    rerank: int | None = None,
    extras: Extras = NOTHING_MORE,
    batch_size: int = 64,
    max_bad: float = MAX_BAD,
    **options: Any,
) -> Measured:
    """As `evaluate`, with predictions, ranks and what was left out kept; further options are those of `predict`."""
    if rerank is not None:
        check_rerank(pipeline, rerank)
    check_extras(extras, pipeline, records)
    found = predict(pipeline, records, batch_size=batch_size, max_bad=max_bad, **options)
    kept = remaining(records, found.left_out)
    ranks: dict[str, RetrievalRanks] = {}
    if found.image_embeds is not None:
        ranks[""] = metrics.retrieval_ranks(found.image_embeds, found.text_embeds, found.image_ids)
    if rerank is not None:
        ranks["reranked/"] = rerank_candidates(pipeline, kept, found, k=rerank, batch_size=batch_size)
    measured = figures(found)
    if rerank is not None:
        reranked = metrics.figures_of_ranks(ranks["reranked/"])
        measured |= {f"reranked/{name}": value for name, value in reranked.items()}
    measured |= extra_figures(extras, pipeline, kept, found, batch_size=batch_size, max_bad=max_bad)
    return Measured(found, measured, ranks, kept)


def figures(predictions: Predictions) -> dict[str, float]:
    """The figures of predictions already made."""
    found: dict[str, float] = {}
    if predictions.image_embeds is not None:
        found |= metrics.retrieval_metrics(predictions.image_embeds, predictions.text_embeds, predictions.image_ids)
    if predictions.written is not None:
        captions = [written.caption for written in predictions.written]
        found |= metrics.caption_metrics(captions, [written.references for written in predictions.written])
    if predictions.left_out:
        found["left_out"] = float(len(predictions.left_out))
    return found
