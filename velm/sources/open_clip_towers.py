"""open_clip's models as VELM's: which parts they become, and where their weights go."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from velm.sources.open_clip_coca import captioner, captioner_weights
from velm.sources.open_clip_images import image_tower
from velm.sources.open_clip_texts import text_tower
from velm.sources.state_dict import StateDict
from velm.sources.tower import Tower

__all__ = ["Towers", "read_towers"]


@dataclass
class Towers:
    """A model's parts in VELM's terms.

    Attributes:
        image, text: part configs.
        image_projection, text_projection: see `velm.model.model.build_projection`.
        tokenizer: part config.
        max_length: longest text in tokens, bos and eos included.
        weights: takes the weights out of a state dict for a number of tokens, by their names in a task.
        decoder: part config; None: it makes no captions.
        losses: that it was trained with beside the alignment.
    """

    image: dict[str, Any]
    text: dict[str, Any]
    image_projection: str
    text_projection: str
    tokenizer: dict[str, Any]
    max_length: int
    weights: Callable[[StateDict, int], dict[str, Tensor]]
    decoder: dict[str, Any] | None = None
    losses: dict[str, dict[str, Any]] = field(default_factory=dict)


def read_towers(model: Mapping[str, Any], folder: Path | None) -> Towers:
    """The parts of a `model_cfg`.

    Args:
        folder: where tokenizer files may be.

    Raises:
        OSError: the config or the tokenizer of a text tower of transformers cannot be read.
        ValueError: VELM has no such tower; the message names the option.
    """
    vision, text, quick = model["vision_cfg"], model["text_cfg"], bool(model.get("quick_gelu"))
    image = image_tower(vision, int(model["embed_dim"]), quick)
    texts, tokenizer, max_length = text_tower(text, int(model["embed_dim"]), quick, folder)
    towers = Towers(
        image=image.config,
        text=texts.config,
        image_projection=image.projection,
        text_projection=texts.projection,
        tokenizer=tokenizer,
        max_length=max_length,
        weights=partial(_weights, image, texts),
    )
    if "multimodal_cfg" in model:
        towers.decoder = captioner(model["multimodal_cfg"], text, texts.config)
        towers.text = {"name": "decoder", "pooling": "class", "fill_id": int(model.get("pad_id", 0))}
        towers.losses = {"captioning": {"weight": 2.0}}  # open_clip's default, --coca-caption-loss-weight
        towers.weights = partial(captioner_weights, image, towers.decoder)
    elif text.get("embed_cls"):
        raise ValueError("its texts end with a class token (embed_cls), which VELM imports with a CoCa only.")
    return towers


def _weights(image: Tower, text: Tower, state: StateDict, vocab_size: int) -> dict[str, Tensor]:
    return {**image.weights(state, vocab_size), **text.weights(state, vocab_size)}
