"""Images in batches, with those that cannot be read kept apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from velm.data.images.prefetch import read_batches
from velm.errors import DataError
from velm.inputs import checked_batch_size
from velm.outputs import EncoderOutput
from velm.pipeline.pipeline import Pipeline

__all__ = ["ReadableBatch", "encode_readable"]


@dataclass(frozen=True)
class ReadableBatch:
    """A batch of images, encoded as far as they can be read.

    Attributes:
        rows: positions of the readable images among all images.
        encoded: the image encoder's output of `rows`, in their order; None if there are none.
        errors: position of each other image of the batch to why it cannot be read; the message names the image.
    """

    rows: list[int]
    encoded: EncoderOutput | None
    errors: dict[int, DataError]


def encode_readable(
    pipeline: Pipeline,
    images: Sequence[Any],
    *,
    batch_size: int,
    transform: Callable[[Any], Tensor] | None = None,
) -> Iterator[ReadableBatch]:
    """The batches of images in order; threads read the next batch at the same time.

    Args:
        images: inputs of the transform.
        batch_size: images per batch.
        transform: image to uint8 (3, H, W), or DataError; None: the pipeline's own.
    """
    read = transform or pipeline.transform

    def attempt(image: Any) -> Tensor | DataError:
        try:
            return read(image)
        except DataError as error:
            return error

    start = 0
    for batch in read_batches(images, attempt, checked_batch_size(batch_size), stack=list):
        pixels = {row: each for row, each in enumerate(batch, start) if isinstance(each, Tensor)}
        errors = {row: each for row, each in enumerate(batch, start) if isinstance(each, DataError)}
        encoded = pipeline.encode_pixels(torch.stack(list(pixels.values()))) if pixels else None
        yield ReadableBatch(list(pixels), encoded, errors)
        start += len(batch)
