"""CLIPScore of generated captions by the model's own embeddings or by those of a judge."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from velm.data.base import Record
from velm.errors import PipelineError
from velm.evaluation.encoding import encode_images
from velm.evaluation.predictions import Captions
from velm.evaluation.reranking import require_image_captioner
from velm.metrics.clipscore import clip_score, ref_clip_score
from velm.pipeline import Pipeline


def check_clip_score(pipeline: Pipeline) -> None:
    """Raise PipelineError unless the model aligns and captions images."""
    pipeline.require_alignment()
    require_image_captioner(pipeline, "CLIPScore")


def check_judge(pipeline: Pipeline, judge: Pipeline) -> None:
    """Raise PipelineError unless the model captions images and the judge aligns."""
    require_image_captioner(pipeline, "CLIPScore")
    if not judge.aligned:
        raise PipelineError(
            "The model that computes CLIPScores was not trained to align images with texts, so it has no "
            "embeddings to compare. Name a checkpoint trained with `losses: {contrastive: ...}` or its like."
        )


def clip_score_metrics(pipeline: Pipeline, captions: Captions, image_embeds: Tensor) -> dict[str, float]:
    """`caption/clip_score`, `caption/ref_clip_score`: means over captions; a caption without words scores 0.

    They compare captions of one checkpoint (e.g. decoding options), not checkpoints.

    Args:
        image_embeds: float (n, E), of `pipeline`.
    """
    check_clip_score(pipeline)
    return _scores("caption", pipeline, captions, image_embeds)


def judge_metrics(
    pipeline: Pipeline, captions: Captions, *, judge: Pipeline, records: Sequence[Record], batch_size: int = 64
) -> dict[str, float]:
    """`judged/clip_score`, `judged/ref_clip_score`: as `clip_score_metrics`, by the embeddings of another model.

    They compare the captions of different checkpoints that share a judge.

    Args:
        judge: a model that aligns; it encodes the images itself.
    """
    check_judge(pipeline, judge)
    embeds = [judge.embed_image(image) for _, image in encode_images(judge, records, batch_size)]
    return _scores("judged", judge, captions, torch.cat(embeds))


def _scores(group: str, pipeline: Pipeline, captions: Captions, image_embeds: Tensor) -> dict[str, float]:
    caption_embeds = _embed_captions(pipeline, captions.texts)
    references = [(i, text) for i, texts in enumerate(captions.references) for text in texts]
    reference_embeds = pipeline.embed_texts([text for _, text in references]).float()
    ids = torch.tensor([i for i, _ in references])
    image = image_embeds.float()
    return {
        f"{group}/clip_score": float(clip_score(image, caption_embeds).mean()),
        f"{group}/ref_clip_score": float(ref_clip_score(image, caption_embeds, reference_embeds, ids).mean()),
    }


def _embed_captions(pipeline: Pipeline, captions: Sequence[str]) -> Tensor:
    """float (n, E); zeros for captions without words."""
    rows = [i for i, caption in enumerate(captions) if caption.strip()]
    embeds = pipeline.embed_texts([captions[i] for i in rows]).float()
    return embeds.new_zeros(len(captions), embeds.shape[1]).index_copy_(0, torch.tensor(rows, dtype=torch.long), embeds)
