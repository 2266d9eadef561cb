"""Everything that can be said of one image and a sentence, as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from velm.errors import PipelineError
from velm.explain.attention import word_maps
from velm.explain.saliency import saliency_map
from velm.explain.similarity import similarity_maps
from velm.outputs import EncoderOutput
from velm.pipeline import Pipeline
from velm.pipeline.inputs import checked_texts

__all__ = ["Explanation", "explain"]


@dataclass(frozen=True)
class Explanation:
    """Maps of one image for one sentence; (H', W') is the encoder's grid, row by row from the top left corner.

    Attributes:
        image: uint8 (H, W, 3), what the model was shown.
        text: the sentence explained: the one given, or else the model's own.
        words: W words of `text`; () without attention.
        attention: float32 (W, H', W'), where the decoder looked to write each word; None where it does not say.
        similarity: float32 (H', W'), cosine of each position with the sentence; None where the model does not align.
        saliency: float32 (H, W), what each pixel adds to the fit; None unless asked for.
    """

    image: np.ndarray
    text: str
    words: tuple[str, ...] = ()
    attention: np.ndarray | None = None
    similarity: np.ndarray | None = None
    saliency: np.ndarray | None = None

    def arrays(self) -> dict[str, np.ndarray]:
        """The maps there are, by name."""
        maps = {"attention": self.attention, "similarity": self.similarity, "saliency": self.saliency}
        return {name: each for name, each in maps.items() if each is not None}


def explain(
    pipeline: Pipeline, image: Any, texts: Sequence[str] | None = None, *, saliency: bool = False, **options: Any
) -> list[Explanation]:
    """What a model makes of an image, for each of some sentences or for the one it writes itself.

    Args:
        pipeline: a model that sees images.
        image: a path, PIL image or uint8 array (H, W, 3).
        texts: sentences to be explained; None: the model's own caption. Where the decoder attends over a text as well,
            these are what it reads, and what it writes for them is explained.
        saliency: also, which pixels decide (needs captum).
        **options: fields of `velm.generation.GenerationConfig`, of the caption.

    Raises:
        PipelineError: the model sees no images, or cannot write and no text is given; the message says what to do.
    """
    if pipeline.model.image_encoder is None:
        raise PipelineError("This model sees no images, so there is nothing to lay maps over.")
    given = [] if texts is None else checked_texts(texts)
    encoded = next(pipeline.encode_images([image], batch_size=1))
    reads = pipeline.writes and "text" in pipeline.model.memory_sources
    if reads and not given:
        raise PipelineError("The decoder attends over a text as well: give what it is to read, texts=[...].")
    written = given if given and not reads else _written(pipeline, encoded, given, options)
    sources: Sequence[str | None] = given if reads else [None] * len(written)
    shown = pipeline.transform(image).permute(1, 2, 0).numpy()
    found = []
    for text, source in zip(written, sources, strict=True):
        pixels = saliency_map(pipeline, image, text).numpy() if saliency else None
        found.append(_explained(pipeline, encoded, shown, text, source, pixels))
    return found


def _written(pipeline: Pipeline, image: EncoderOutput, sources: Sequence[str], options: dict[str, Any]) -> list[str]:
    """The caption of an image, for each of the texts that the decoder reads beside it, if any."""
    pipeline.require_decoder()
    config = pipeline.generation_config(**options)
    if not sources:
        return [pipeline.write(image, None, config)[0][0].text]
    rows = torch.zeros(len(sources), dtype=torch.long, device=image.features.device)
    return [each[0].text for each in pipeline.write(image.select(rows), pipeline.encode_texts(sources), config)]


def _explained(
    pipeline: Pipeline,
    image: EncoderOutput,
    shown: np.ndarray,
    text: str,
    source: str | None,
    saliency: np.ndarray | None,
) -> Explanation:
    looked = None
    if pipeline.writes:
        read = None if source is None else pipeline.encode_texts([source])
        looked = word_maps(pipeline, image, [text], read)[0]
    near: Tensor | None = None
    if pipeline.aligned and image.grid is not None and text:
        near = similarity_maps(pipeline, image, [text])[0]
    return Explanation(
        image=shown,
        text=text,
        words=() if looked is None else looked.words,
        attention=None if looked is None else looked.maps.numpy(),
        similarity=None if near is None else near.numpy(),
        saliency=saliency,
    )
