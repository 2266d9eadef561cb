"""Captions without an image, beside those with it: equal metrics mean that the decoder does not look.

The image is replaced by one whose pixels all have the mean colour of the encoder's training images, which is zero after
normalisation. Everything else is the same. A caption then depends on the text that the decoder reads, if it reads one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from velm.data.base import Turn
from velm.errors import PipelineError
from velm.evaluation.predictions import Captions, GeneratedCaption
from velm.generation import GenerationConfig
from velm.metrics import caption_metrics
from velm.model import VisionLanguageModel
from velm.outputs import EncoderOutput
from velm.pipeline import Pipeline

__all__ = ["BLIND", "blind_captions", "blind_metrics", "check_blind", "empty_image", "looks_at_image"]

BLIND = "blind/"
"""Prefix of the metrics without an image."""


def looks_at_image(model: VisionLanguageModel) -> bool:
    """Whether the model's decoder attends over the image."""
    return model.decoder is not None and "image" in model.memory_sources


def check_blind(pipeline: Pipeline) -> None:
    """Raise PipelineError if the model has no decoder that attends over the image."""
    pipeline.require_decoder()
    if not looks_at_image(pipeline.model):
        raise PipelineError(
            "The blind metrics replace the image, and this decoder attends over the text only (memory: [text]): leave "
            "out --blind."
        )


@torch.no_grad()
def empty_image(pipeline: Pipeline) -> EncoderOutput:
    """The image encoder's output, of one row, for an image without content."""
    model, size = pipeline.model, pipeline.transform.image_size
    pixels = torch.zeros(1, 3, size, size, device=pipeline.device, dtype=model.image_scale.dtype)
    return model.encode_image(pixels)


def blind_captions(
    pipeline: Pipeline, captions: Sequence[GeneratedCaption], config: GenerationConfig, batch_size: int = 64
) -> list[str]:
    """The best caption of an image without content for what the decoder read, if anything, for each caption."""
    image = empty_image(pipeline)
    found: dict[tuple[str | None, tuple[Turn, ...]], str] = {}
    inputs = [(row.text, row.history) for row in captions]
    distinct = list(dict.fromkeys(inputs))
    for start in range(0, len(distinct), batch_size):
        part = distinct[start : start + batch_size]
        read = [text for text, _ in part if text is not None]
        rows = torch.zeros(len(part), dtype=torch.long, device=pipeline.device)
        text, prompt = pipeline.read_texts(read or None, [history for _, history in part])
        written = pipeline.write(image.select(rows), text, config, prompt)
        found |= {asked: best.text for asked, (best, *_) in zip(part, written, strict=True)}
    return [found[asked] for asked in inputs]


def blind_metrics(
    pipeline: Pipeline, captions: Captions, config: GenerationConfig, *, tokenize: str = "auto", batch_size: int = 64
) -> dict[str, float]:
    """`blind/caption/...`: the caption metrics of the same texts and references without the images."""
    blind = blind_captions(pipeline, captions.rows, config, batch_size)
    values = caption_metrics(blind, captions.references, tokenize=tokenize)
    return {f"{BLIND}{name}": value for name, value in values.items()}
