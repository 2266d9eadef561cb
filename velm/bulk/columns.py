"""What a bulk run computes of images: a column of embeddings, or columns of captions; bad images have an error."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from torch import Tensor

from velm.errors import PipelineError
from velm.pipeline import Caption, Pipeline, encode_readable

__all__ = ["Captions", "Embeddings", "Task"]

Transform = Callable[[Any], Tensor]


class Task(ABC):
    """Computes columns of images.

    Attributes:
        name: 'captions' or 'embeddings'.
        pipeline: of the model.
        options: plain Python, all that changes the result beside model and images.
    """

    name: str
    pipeline: Pipeline
    options: dict[str, Any]

    @abstractmethod
    def columns(
        self, images: Sequence[Any], batch_size: int, transform: Transform | None = None
    ) -> tuple[dict[str, pa.Array], list[str | None]]:
        """The columns, null for each image that cannot be read, and why it cannot.

        Args:
            images, batch_size, transform: as of `velm.pipeline.encode_readable`.
        """


class Embeddings(Task):
    """Column `embedding`, fixed_size_list<float>[E], L2-normalised.

    Args:
        pipeline: of an aligned model.
        dtype: of the numbers.

    Raises:
        PipelineError: the model is not aligned.
    """

    name = "embeddings"

    def __init__(self, pipeline: Pipeline, dtype: Literal["float16", "float32"] = "float16") -> None:
        pipeline.require_alignment()
        self.pipeline, self.dtype, self.dim = pipeline, dtype, pipeline.model.embed_dim
        self.options = {"dtype": dtype}

    def columns(
        self, images: Sequence[Any], batch_size: int, transform: Transform | None = None
    ) -> tuple[dict[str, pa.Array], list[str | None]]:
        embeds = np.zeros((len(images), self.dim), self.dtype)
        errors: list[str | None] = [None] * len(images)
        for batch in encode_readable(self.pipeline, images, batch_size=batch_size, transform=transform):
            if batch.encoded is not None:
                embeds[batch.rows] = self.pipeline.embed_image(batch.encoded).float().numpy()
            for row, error in batch.errors.items():
                errors[row] = str(error)
        bad = pa.array([error is not None for error in errors], pa.bool_())
        flat = pa.array(embeds.reshape(-1))
        return {"embedding": pa.FixedSizeListArray.from_arrays(flat, self.dim, mask=bad)}, errors


class Captions(Task):
    """Columns `captions`, list<string>, best first, and `scores`, list<float>, null where no caption was found.

    Args:
        pipeline: of a model with a decoder that sees images.
        text: what the decoder reads beside each image, if it reads texts: a question, an instruction.
        **options: of generation, see `Pipeline.caption`.

    Raises:
        PipelineError: the model cannot caption, or an option cannot be used.
    """

    name = "captions"

    def __init__(self, pipeline: Pipeline, text: str | None = None, **options: Any) -> None:
        pipeline.require_decoder()
        self.pipeline, self.text = pipeline, text
        self.config = pipeline.generation_config(**options)
        self.options = {"text": text, **{name: _plain(value) for name, value in options.items()}}
        reads = tuple(pipeline.model.reads)
        if "image" not in reads:
            raise PipelineError(f"The decoder attends over {' and '.join(reads)}: it captions no images in bulk.")
        if ("text" in reads) != (text is not None):
            need = "also reads a text: give one for all images" if text is None else "reads no text: leave it out"
            raise PipelineError(f"The decoder {need}.")

    def columns(
        self, images: Sequence[Any], batch_size: int, transform: Transform | None = None
    ) -> tuple[dict[str, pa.Array], list[str | None]]:
        found: list[list[Caption] | None] = [None] * len(images)
        errors: list[str | None] = [None] * len(images)
        for batch in encode_readable(self.pipeline, images, batch_size=batch_size, transform=transform):
            for row, error in batch.errors.items():
                errors[row] = str(error)
            if batch.encoded is None:
                continue
            text, prompt = self.pipeline.read_texts(None if self.text is None else [self.text] * len(batch.rows))
            written = self.pipeline.write(batch.encoded, text, self.config, prompt)
            for row, captions in zip(batch.rows, written, strict=True):
                found[row] = captions
        texts = [None if each is None else [caption.text for caption in each] for each in found]
        scores = [None if each is None else [caption.numbers["score"] for caption in each] for each in found]
        return {
            "captions": pa.array(texts, pa.list_(pa.string())),
            "scores": pa.array(scores, pa.list_(pa.float32())),
        }, errors


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
