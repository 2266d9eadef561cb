"""`ForeignModel`, a model of another library in VELM's terms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

__all__ = ["PREFIXES", "ForeignModel", "is_foreign"]

PREFIXES = ("hf/", "open_clip/")


@dataclass(frozen=True)
class ForeignModel:
    """What a source says of its model, before its weights are read.

    Attributes:
        name: as it is typed, 'hf/openai/clip-vit-base-patch32'.
        model: options of `model:` in a config: `image_encoder`, `text_encoder`, `embed_dim`, the projections, and for a
            captioner `decoder`.
        data: options of `data:` in a config: `tokenizer`, `image_size`, `resize`, `interpolation`, `decode`,
            `max_length`.
        losses: the loss that it was trained with, `{'sigmoid': {'temperature': 0.1, 'bias': -10.0}}`.
        read_weights: called with the number of tokens of the tokenizer, returns the weights by their names in a task,
            "model.image_encoder.norm.weight", "losses.sigmoid.log_scale".
        aligned: whether its embeddings of images and texts can be compared.
    """

    name: str
    model: dict[str, Any]
    data: dict[str, Any]
    losses: dict[str, dict[str, Any]]
    read_weights: Callable[[int], dict[str, Tensor]] = field(repr=False)
    aligned: bool = True


def is_foreign(source: str | Path) -> bool:
    """Whether a source is a model of another library; a file of that name is a checkpoint of VELM."""
    text = str(source)
    return text.startswith(PREFIXES) and not Path(text).expanduser().is_file()
