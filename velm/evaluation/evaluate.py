"""How good a model is on a split: the figures of metrics.json."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from velm import metrics
from velm.data.base import Record
from velm.evaluation.predictions import Predictions, Progress, predict
from velm.pipeline import Pipeline

__all__ = ["evaluate", "figures"]


def evaluate(
    pipeline: Pipeline,
    records: Sequence[Record],
    *,
    batch_size: int = 64,
    texts_per_image: int | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> dict[str, float]:
    """Recall both ways and caption metrics of a split, whichever the model can do.

    Retrieval is over all pictures and all their texts, any of which is right for its picture. Captions are held
    against the record's targets where it has any, else against its texts.

    Args:
        pipeline: what to measure.
        records: one a picture.
        batch_size: pictures at a time.
        texts_per_image: sentences of a picture, the first ones, that enter the gallery; None takes all. References
            of captions are always all of them.
        progress: called with (records done, records in all) after every batch.
        **options: fields of `velm.generation.GenerationConfig`: num_beams, max_length, ...

    Returns:
        figures by the names of metrics.json, in [0, 1] unless the name says otherwise.
    """
    return figures(
        predict(
            pipeline,
            records,
            batch_size=batch_size,
            texts_per_image=texts_per_image,
            progress=progress,
            **options,
        )
    )


def figures(predictions: Predictions) -> dict[str, float]:
    """The figures of predictions already made."""
    found: dict[str, float] = {}
    if predictions.image_embeds is not None:
        found |= metrics.retrieval_metrics(predictions.image_embeds, predictions.text_embeds, predictions.image_ids)
    if predictions.written is not None:
        captions = [written.caption for written in predictions.written]
        found |= metrics.caption_metrics(captions, [written.references for written in predictions.written])
    return found
