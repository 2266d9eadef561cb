"""The model's operations on batches; they run in the one thread that computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from velm.explain.attention import word_maps
from velm.explain.similarity import similarity_maps
from velm.generation import GenerationConfig
from velm.inputs import checked_sources
from velm.outputs import EncoderOutput
from velm.pipeline import Caption, Pipeline
from velm.prompt import Prompt
from velm.segmentation import words_on_screen
from velm.serving.batcher import Kind

__all__ = ["ALONE", "IMAGES", "SIMILARITY", "TEXTS", "Engine", "Source", "caption_kind"]

TEXTS, IMAGES, SIMILARITY, ALONE = Kind("texts"), Kind("images"), Kind("similarity"), Kind("alone")


@dataclass(frozen=True)
class Source:
    """What a caption is written of: pixels uint8 (3, S, S), a text, or both."""

    pixels: Tensor | None
    text: str | None


def caption_kind(config: GenerationConfig) -> Kind:
    """Captions of equal options share a batch."""
    return Kind("captions", config, max(config.num_beams, config.num_return))


class Engine:
    """A pipeline behind a batcher.

    Args:
        pipeline: of the checkpoint.

    Attributes:
        similarity_map, attention_map: whether the model gives them; known after `warm_up`.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.similarity_map = False
        self.attention_map = False

    def compute(self, kind: Kind, items: list[Any]) -> list[Any]:
        """Results of a batch, one per item; see `Batcher`.

        Items and results by kind: texts to float32 (E,); images, uint8 (3, S, S), to float32 (E,); pairs of pixels and
        text to (cosine, map or None); `Source` to a list of `Caption`; functions without arguments to their values.
        """
        if kind == ALONE:
            return [_value(item) for item in items]
        if kind == TEXTS:
            return list(self.pipeline.embed_texts(items, batch_size=len(items)).float().numpy())
        if kind == IMAGES:
            return list(self.pipeline.embed_image(self._encoded(items)).float().numpy())
        if kind == SIMILARITY:
            return self._similarity(items)
        assert isinstance(kind.options, GenerationConfig)
        return self._captions(items, kind.options)

    def warm_up(self) -> None:
        """Compute each kind once, so that the first request is as fast as the others, and see which maps there are."""
        size, reads = self.pipeline.transform.image_size, self.pipeline.model.reads
        pixels = torch.zeros(3, size, size, dtype=torch.uint8)
        if self.pipeline.aligned:
            self.compute(TEXTS, ["a"])
            self.compute(IMAGES, [pixels])
            self.similarity_map = self.compute(SIMILARITY, [(pixels, "a")])[0][1] is not None
        if self.pipeline.writes:
            source = Source(pixels if "image" in reads else None, "a" if "text" in reads else None)
            self.compute(caption_kind(self.pipeline.generation_config()), [source])
            self.attention_map = any(word_map for _, word_map in self.maps(source, "a"))

    def check_source(self, image: str | None, text: str | None) -> None:
        """Raise PipelineError unless these are exactly what the decoder reads."""
        self.pipeline.require_decoder()
        images, texts = None if image is None else [Path(image)], None if text is None else [text]
        checked_sources(self.pipeline.model.reads, images, texts)

    def parts(self, source: Source, config: GenerationConfig, maps: bool) -> Iterator[dict[str, Any]]:
        """The caption in parts: {'text': part}, with `maps` also 'map', where its last word attends, or None."""
        image = None if source.pixels is None else self._encoded([source.pixels])
        text, prompt = self._texts(source)
        written = ""
        for part in self.pipeline.stream(image, text, config, prompt):
            written += part
            if not maps:
                yield {"text": part}
                continue
            [found] = word_maps(self.pipeline, image, [written], text, prompt)
            yield {"text": part, "map": rounded(found.maps[-1]) if found is not None and len(found.maps) else None}

    def maps(self, source: Source, written: str) -> list[tuple[str, list[list[float]] | None]]:
        """The words of a caption, each with the map of where the decoder attends for it, or None."""
        image = None if source.pixels is None else self._encoded([source.pixels])
        [found] = word_maps(self.pipeline, image, [written], *self._texts(source))
        if found is None:
            return [(word, None) for word in words_on_screen(written)]
        return [(word, rounded(each)) for word, each in zip(found.words, found.maps, strict=True)]

    def _texts(self, source: Source) -> tuple[EncoderOutput | None, Prompt | None]:
        return self.pipeline.read_texts(None if source.text is None else [source.text])

    def _encoded(self, pixels: list[Tensor]) -> EncoderOutput:
        return self.pipeline.encode_pixels(torch.stack(pixels))

    def _captions(self, sources: list[Source], config: GenerationConfig) -> list[list[Caption]]:
        pixels = [each.pixels for each in sources if each.pixels is not None]
        texts = [each.text for each in sources if each.text is not None]
        text, prompt = self.pipeline.read_texts(texts or None)
        return self.pipeline.write(self._encoded(pixels) if pixels else None, text, config, prompt)

    def _similarity(self, pairs: list[tuple[Tensor, str]]) -> list[tuple[float, list[list[float]] | None]]:
        image, texts = self._encoded([pixels for pixels, _ in pairs]), [text for _, text in pairs]
        embeds = self.pipeline.embed_image(image).float(), self.pipeline.embed_texts(texts).float()
        cosines = (embeds[0] * embeds[1]).sum(dim=-1).tolist()
        if image.grid is None:
            return [(cosine, None) for cosine in cosines]
        maps = similarity_maps(self.pipeline, image, texts)
        return [(cosine, rounded(each)) for cosine, each in zip(cosines, maps, strict=True)]


def rounded(grid: Tensor) -> list[list[float]]:
    """A map for JSON, four digits after the point; NaN becomes 0."""
    values: list[list[float]] = [[round(value, 4) for value in row] for row in torch.nan_to_num(grid.float()).tolist()]
    return values


def _value(function: Callable[[], Any]) -> Any:
    """The value of a function, or the exception that it raised."""
    try:
        return function()
    except Exception as error:
        return error
