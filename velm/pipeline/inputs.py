"""What a pipeline takes: lists of images and sentences; and how it says that something else came."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from velm.errors import PipelineError

__all__ = ["ImageInput", "listed", "positive", "sentences", "sources"]

ImageInput = str | os.PathLike[str] | Image.Image | np.ndarray


def listed(items: Any, name: str) -> list[Any]:
    """A list of the items; a single image or sentence is none."""
    if isinstance(items, str | bytes | os.PathLike | Image.Image) or (isinstance(items, np.ndarray) and items.ndim < 4):
        raise PipelineError(f"{name} is a list, also of one; got a single {type(items).__name__}. Write [{name[:-1]}].")
    return list(items)


def sentences(texts: Any) -> list[str]:
    """A list of sentences, none empty."""
    found = listed(texts, "texts")
    for i, text in enumerate(found):
        if not isinstance(text, str) or not text.strip():
            raise PipelineError(f"texts[{i}] is {text!r}; it takes a sentence that is not empty.")
    return found


def sources(
    wanted: Sequence[str], images: Sequence[ImageInput] | None, texts: Sequence[str] | None
) -> tuple[list[ImageInput] | None, list[str] | None]:
    """Images and sentences as lists, those that the decoder attends over: `wanted` names 'image', 'text' or both."""
    given = tuple(name for name, value in (("image", images), ("text", texts)) if value is not None)
    if set(given) != set(wanted):
        named = {"image": "images=[...]", "text": "texts=[...]"}
        raise PipelineError(
            f"The decoder attends over {' and '.join(wanted)}: give {' and '.join(named[w] for w in wanted)}; "
            f"got {' and '.join(named[g] for g in given) or 'nothing'}."
        )
    image_list = None if images is None else listed(images, "images")
    read = None if texts is None else sentences(texts)
    if image_list is not None and read is not None and len(image_list) != len(read):
        raise PipelineError(f"One text per image: got {len(image_list)} images and {len(read)} texts.")
    return image_list, read


def positive(batch_size: int) -> int:
    if batch_size < 1:
        raise PipelineError(f"batch_size {batch_size} is too small; it is at least 1.")
    return batch_size
