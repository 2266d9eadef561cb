"""Callable classes for Ray Data: `ds.map_batches(CaptionImages, fn_constructor_kwargs={"checkpoint": ...}, ...)`.

They map a dict of columns to a dict of columns and import no Ray, so Spark's `mapInPandas` and `datasets.Dataset.map`
take them too.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from velm.bulk.columns import Captions, Embeddings, Task
from velm.data.base import EncodedImage
from velm.errors import PipelineError
from velm.pipeline import Pipeline, load

__all__ = ["CaptionImages", "EmbedImages"]

COLUMNS = ("image", "bytes", "path")
"""Columns that hold images, the first one that is there, unless one is named."""


class _Mapped(ABC):
    """Adds columns to batches; loads its model once, in the process of the worker."""

    def __init__(
        self,
        checkpoint: str | os.PathLike[str],
        *,
        column: str | None = None,
        device: str | None = None,
        precision: Literal["32", "bf16"] = "32",
        image_size: int | None = None,
        plugins: Sequence[str] = (),
        batch_size: int = 32,
    ) -> None:
        import torch

        self.column, self.batch_size = column, batch_size
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.pipeline: Pipeline = load(
            str(checkpoint), device, plugins=plugins, image_size=image_size, precision=precision
        )
        self.task: Task

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The batch with more columns, row by row.

        Raises:
            PipelineError: it has no column of images.
        """
        name = self.column or next((each for each in COLUMNS if each in batch), None)
        if name is None or name not in batch:
            wanted = repr(name) if name else f"any of {', '.join(COLUMNS)}"
            raise PipelineError(f"The batch has no column {wanted}, but {', '.join(batch)}. Name one: column='...'.")
        images = [_image(value, f"{name} of row {row} of a batch") for row, value in enumerate(batch[name])]
        columns, errors = self.task.columns(images, self.batch_size)
        return {**batch, **self.arrays(columns), "error": np.array(errors, dtype=object)}

    @abstractmethod
    def arrays(self, columns: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """numpy arrays of the columns of the task."""


class CaptionImages(_Mapped):
    """Adds `caption`, the best one, `score`, and `error`, which says why an image cannot be read, else None.

    Bad images have the caption None and the score NaN. With `num_return` above 1 there are `captions` and `scores`
    too, lists, best first.

    Args:
        checkpoint: see `velm.load`.
        column: of the images: paths, bytes of image files, or uint8 (H, W, 3); None: 'image', 'bytes' or 'path', the
            first that is there.
        device: None: 'cuda' where the worker has one, else 'cpu'.
        precision, image_size, plugins: as of `velm.load`.
        batch_size: images that are computed at a time, within a batch of Ray.
        text: what the decoder reads beside each image, if it reads texts.
        **options: of generation, see `Pipeline.caption`.
    """

    def __init__(
        self,
        checkpoint: str | os.PathLike[str],
        *,
        column: str | None = None,
        device: str | None = None,
        precision: Literal["32", "bf16"] = "32",
        image_size: int | None = None,
        plugins: Sequence[str] = (),
        batch_size: int = 32,
        text: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(
            checkpoint, column=column, device=device, precision=precision, image_size=image_size, plugins=plugins,
            batch_size=batch_size,
        )  # fmt: skip
        self.task = self._captions = Captions(self.pipeline, text, **options)

    def arrays(self, columns: Mapping[str, Any]) -> dict[str, np.ndarray]:
        captions, scores = (columns[name].to_pylist() for name in ("captions", "scores"))
        best = np.array([None if each is None else each[0] for each in captions], dtype=object)
        score = np.array([np.nan if each is None or each[0] is None else each[0] for each in scores], np.float32)
        if self._captions.config.num_return == 1:
            return {"caption": best, "score": score}
        return {"caption": best, "score": score, "captions": _objects(captions), "scores": _objects(scores)}


class EmbedImages(_Mapped):
    """Adds `embedding`, float32 (E,), L2-normalised, and `error`; the embedding of a bad image is NaN.

    Args:
        checkpoint: see `velm.load`.
        **loading: as of `CaptionImages`.
    """

    def __init__(self, checkpoint: str | os.PathLike[str], **loading: Any) -> None:
        super().__init__(checkpoint, **loading)
        self.task = self._embeddings = Embeddings(self.pipeline, "float32")

    def arrays(self, columns: Mapping[str, Any]) -> dict[str, np.ndarray]:
        column = columns["embedding"]
        embeds = column.values.to_numpy(zero_copy_only=False).reshape(-1, self._embeddings.dim).copy()
        embeds[column.is_null().to_numpy(zero_copy_only=False)] = np.nan
        return {"embedding": embeds}


def _image(value: Any, name: str) -> Any:
    """A cell as an input of a pipeline; whatever it cannot read becomes the error of its row."""
    if isinstance(value, Mapping):  # of Hugging Face datasets
        name, value = value.get("path") or name, value.get("bytes") or value.get("path")
    if isinstance(value, bytes | bytearray | memoryview):
        content = bytes(value)
        return EncodedImage(name, lambda: content)
    return value


def _objects(values: Sequence[Any]) -> np.ndarray:
    """object (N,), one list each."""
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array
