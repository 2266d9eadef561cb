"""The checks of a pipeline's arguments: lists of images and texts, a batch size."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from velm.errors import PipelineError

ImageInput = str | os.PathLike[str] | Image.Image | np.ndarray


def as_list(items: Any, name: str) -> list[Any]:
    """A list of the items; a single image or text is refused."""
    if isinstance(items, str | bytes | os.PathLike | Image.Image) or (isinstance(items, np.ndarray) and items.ndim < 4):
        raise PipelineError(f"{name} is a list, also of one; got a single {type(items).__name__}. Write [{name[:-1]}].")
    return list(items)


def checked_texts(texts: Any) -> list[str]:
    """A list of texts, none empty."""
    checked = as_list(texts, "texts")
    for i, text in enumerate(checked):
        if not isinstance(text, str) or not text.strip():
            raise PipelineError(f"texts[{i}] is {text!r}; it takes text that is not empty.")
    return checked


def checked_sources(
    memory: Sequence[str], images: Sequence[ImageInput] | None, texts: Sequence[str] | None
) -> tuple[list[ImageInput] | None, list[str] | None]:
    """Images and texts as lists, exactly those that the decoder attends over.

    Args:
        texts: or None; as many as images where both are needed.
    """
    got = tuple(name for name, value in (("image", images), ("text", texts)) if value is not None)
    if set(got) != set(memory):
        argument = {"image": "images=[...]", "text": "texts=[...]"}
        raise PipelineError(
            f"The decoder attends over {' and '.join(memory)}: give {' and '.join(argument[m] for m in memory)}; "
            f"got {' and '.join(argument[g] for g in got) or 'nothing'}."
        )
    image_list = None if images is None else as_list(images, "images")
    text_list = None if texts is None else checked_texts(texts)
    if image_list is not None and text_list is not None and len(image_list) != len(text_list):
        raise PipelineError(f"One text per image: got {len(image_list)} images and {len(text_list)} texts.")
    return image_list, text_list


def checked_batch_size(batch_size: int) -> int:
    if batch_size < 1:
        raise PipelineError(f"batch_size {batch_size} is too small; it is at least 1.")
    return batch_size
