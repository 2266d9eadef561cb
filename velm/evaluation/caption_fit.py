"""Captions without references, or beside them: how well they fit the images, and how new they are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from velm.data.base import Record
from velm.errors import PipelineError
from velm.evaluation.predictions import Predictions
from velm.evaluation.reading import encoded
from velm.metrics.clipscore import clip_score, ref_clip_score
from velm.metrics.diversity import novelty
from velm.pipeline import Pipeline

__all__ = ["check_clip_score", "check_judge", "clip_score_figures", "novelty_figures"]


def check_clip_score(pipeline: Pipeline) -> None:
    """Raise PipelineError where a model cannot score its own captions."""
    pipeline.require_alignment()
    _check_writer(pipeline)


def check_judge(pipeline: Pipeline, judge: Pipeline) -> None:
    """Raise PipelineError where a model has no captions of images, or another cannot judge them."""
    _check_writer(pipeline)
    if not judge.aligned:
        raise PipelineError(
            "The model that is to give CLIPScores was not trained to align images with sentences, so it has no "
            "embeddings to compare. Name a checkpoint trained with `losses: {contrastive: ...}` or its like."
        )


def _check_writer(pipeline: Pipeline) -> None:
    pipeline.require_decoder()
    if pipeline.model.memory_sources != ("image",):
        sources = ", ".join(pipeline.model.memory_sources)
        raise PipelineError(f"CLIPScore asks how an image's caption fits it; this decoder attends over [{sources}].")


def clip_score_figures(
    pipeline: Pipeline,
    found: Predictions,
    *,
    judge: Pipeline | None = None,
    records: Sequence[Record] = (),
    batch_size: int = 64,
) -> dict[str, float]:
    """Mean CLIPScore and RefCLIPScore of the captions, under the names of metrics.json. One without words scores 0.

    Without a judge the model's own towers score, as `caption/...`: figures that compare ways of writing with one
    checkpoint, never two checkpoints. Those of a judge, as `judged/...`, compare whatever it has judged.

    Args:
        pipeline: a model that captions from the image alone; without a judge it aligns, too.
        found: its predictions.
        judge: a model that aligns.
        records: those that were predicted, without any that were left out: the judge looks at their images.
        batch_size: images at a time that the judge looks at.

    Raises:
        PipelineError: a model cannot do its part.
    """
    if judge is None:
        check_clip_score(pipeline)
        group, towers, image = "caption", pipeline, found.image_embeds
    else:
        check_judge(pipeline, judge)
        group, towers = "judged", judge
        batches = encoded(judge, records, batch_size)
        image = torch.cat([judge.embed_image(batch.image) for batch in batches if batch.image is not None])
    assert image is not None
    assert found.written is not None
    captions = _embedded(towers, [row.caption for row in found.written])
    references = [(i, text) for i, row in enumerate(found.written) for text in row.references]
    right = towers.embed_texts([text for _, text in references]).float()
    ids = torch.tensor([i for i, _ in references])
    return {
        f"{group}/clip_score": float(clip_score(image.float(), captions).mean()),
        f"{group}/ref_clip_score": float(ref_clip_score(image.float(), captions, right, ids).mean()),
    }


def novelty_figures(found: Predictions, train: Sequence[Record]) -> dict[str, float]:
    """Share of the captions that are not in the training set (its targets, where it has any, else its texts)."""
    assert found.written is not None
    sentences = (text for record in train for text in record.targets or record.texts)
    return {"caption/novel": novelty([row.caption for row in found.written], sentences)}


def _embedded(pipeline: Pipeline, captions: Sequence[str]) -> Tensor:
    """Float (n, E); zeros where there are no words."""
    rows = [i for i, caption in enumerate(captions) if caption.strip()]
    embeds = pipeline.embed_texts([captions[i] for i in rows]).float()
    return embeds.new_zeros(len(captions), embeds.shape[1]).index_copy_(0, torch.tensor(rows, dtype=torch.long), embeds)
