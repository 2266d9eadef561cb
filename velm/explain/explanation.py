"""All maps of one image for a text, as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from velm.errors import PipelineError
from velm.explain.attention import WordMaps, word_maps
from velm.explain.saliency import saliency_map
from velm.explain.similarity import similarity_maps
from velm.inputs import checked_texts
from velm.outputs import EncoderOutput
from velm.pipeline import Pipeline


@dataclass(frozen=True)
class Explanation:
    """Maps of one image for one text; (H', W') is the encoder's grid, row by row from the top left corner.

    Attributes:
        image: uint8 (H, W, 3), the input of the model.
        text: the text explained: an argument, or the model's own caption.
        words: W words of `text`; () without attention.
        attention: float32 (W, H', W'), the decoder's attention for each word; None if it returns none.
        similarity: float32 (H', W'), cosine of each position with the text; None if the model does not align.
        saliency: float32 (H, W), contribution of each pixel to the fit; None unless requested.
    """

    image: np.ndarray
    text: str
    words: tuple[str, ...] = ()
    attention: np.ndarray | None = None
    similarity: np.ndarray | None = None
    saliency: np.ndarray | None = None

    def arrays(self) -> dict[str, np.ndarray]:
        """The maps that are not None, by name."""
        maps = {"attention": self.attention, "similarity": self.similarity, "saliency": self.saliency}
        return {name: each for name, each in maps.items() if each is not None}


def explain(
    pipeline: Pipeline, image: Any, texts: Sequence[str] | None = None, *, saliency: bool = False, **options: Any
) -> list[Explanation]:
    """Explain each of several texts, or the model's own caption, for one image.

    Args:
        image: a path, PIL image or uint8 array (H, W, 3).
        texts: texts to explain; None: the model's own caption. If the decoder reads a text as well, these are its
            inputs, and the captions generated from them are explained.
        saliency: compute the saliency of the pixels, too (needs captum).
        **options: fields of `velm.generation.GenerationConfig`, for the caption.

    Raises:
        PipelineError: the model has no image encoder, or neither a decoder nor a text to explain; the message says
            what to do.
    """
    if pipeline.model.image_encoder is None:
        raise PipelineError("This model has no image encoder, so there is no image to lay maps over.")
    text_list = [] if texts is None else checked_texts(texts)
    encoded = next(pipeline.encode_images([image], batch_size=1))
    reads = pipeline.writes and "text" in pipeline.model.reads
    if reads and not text_list:
        raise PipelineError("The decoder attends over a text as well: give its input, texts=[...].")
    captions = text_list if text_list and not reads else _captions(pipeline, encoded, text_list, options)
    sources: Sequence[str | None] = text_list if reads else [None] * len(captions)
    pixels = pipeline.transform(image).permute(1, 2, 0).numpy()
    aligned = pipeline.aligned and encoded.grid is not None
    explanations = []
    for text, source in zip(captions, sources, strict=True):
        maps: WordMaps | None = None
        if pipeline.writes:
            [maps] = word_maps(pipeline, encoded, [text], *pipeline.read_texts(None if source is None else [source]))
        explanation = Explanation(
            image=pixels,
            text=text,
            words=() if maps is None else maps.words,
            attention=None if maps is None else maps.maps.numpy(),
            similarity=similarity_maps(pipeline, encoded, [text])[0].numpy() if aligned and text else None,
            saliency=saliency_map(pipeline, image, text).numpy() if saliency else None,
        )
        explanations.append(explanation)
    return explanations


def _captions(pipeline: Pipeline, image: EncoderOutput, sources: Sequence[str], options: dict[str, Any]) -> list[str]:
    """The caption of an image; if the decoder attends over text too, one caption per source text."""
    pipeline.require_decoder()
    config = pipeline.generation_config(**options)
    if not sources:
        return [pipeline.write(image, None, config)[0][0].text]
    rows = torch.zeros(len(sources), dtype=torch.long, device=image.features.device)
    text, prompt = pipeline.read_texts(sources)
    return [each[0].text for each in pipeline.write(image.select(rows), text, config, prompt)]
