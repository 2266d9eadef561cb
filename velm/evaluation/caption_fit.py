"""Captions without references, or beside them: how well they fit the pictures, and how new they are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from velm.data.base import Record
from velm.evaluation.predictions import Predictions
from velm.metrics.clipscore import clip_score, ref_clip_score
from velm.metrics.diversity import novelty
from velm.pipeline import Pipeline, PipelineError

__all__ = ["check_clip_score", "clip_score_figures", "novelty_figures"]


def check_clip_score(pipeline: Pipeline) -> None:
    """Raise PipelineError where a model cannot score its captions."""
    pipeline.require_alignment()
    pipeline.require_decoder()
    if pipeline.model.memory_sources != ("image",):
        sources = ", ".join(pipeline.model.memory_sources)
        raise PipelineError(f"CLIPScore asks how a picture's caption fits it; this decoder attends over [{sources}].")


def clip_score_figures(pipeline: Pipeline, found: Predictions) -> dict[str, float]:
    """Mean CLIPScore and RefCLIPScore of the captions by the model's own towers, under the names of metrics.json.

    The model is its own judge: figures compare ways of writing with one checkpoint, never two checkpoints. A caption
    without words scores 0.

    Args:
        pipeline: a model that aligns, and captions from the picture alone.
        found: its predictions.

    Raises:
        PipelineError: the model cannot do both.
    """
    check_clip_score(pipeline)
    assert found.image_embeds is not None
    assert found.written is not None
    captions = _embedded(pipeline, [row.caption for row in found.written])
    references = [(i, text) for i, row in enumerate(found.written) for text in row.references]
    right = pipeline.embed_texts([text for _, text in references]).float()
    ids = torch.tensor([i for i, _ in references])
    image = found.image_embeds.float()
    return {
        "caption/clip_score": float(clip_score(image, captions).mean()),
        "caption/ref_clip_score": float(ref_clip_score(image, captions, right, ids).mean()),
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
