"""Whole models of transformers: `hf/<hub id or folder>`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from velm.pretrained import hub
from velm.sources.foreign import ForeignModel
from velm.sources.hf_captioners import blip, git, vision_encoder_decoder
from velm.sources.hf_clip import clip, siglip
from velm.sources.hf_dual import altclip, chinese_clip, vision_text

__all__ = ["describe"]

_READERS: dict[str, Callable[[str, Any], ForeignModel]] = {
    "clip": clip,
    "metaclip_2": clip,
    "siglip": siglip,
    "chinese_clip": chinese_clip,
    "altclip": altclip,
    "vision-text-dual-encoder": vision_text,
    "blip": blip,
    "git": git,
    "vision-encoder-decoder": vision_encoder_decoder,
}
_REFUSED = {
    "siglip2": "it takes images of any shape (NaFlex), and VELM's are squares. Checkpoints of a fixed resolution, "
    "such as google/siglip2-base-patch16-224, are models of type siglip and can be imported",
    "clip_vision_model": "it is an image tower alone. Take it as one: `image_encoder: hf/{name}`",
    "clip_text_model": "it is a text tower alone. Take it as one: `text_encoder: hf/{name}`",
}


def describe(name: str) -> ForeignModel:
    """The model of a hub id or a folder, see `velm.sources.describe_source`.

    Raises:
        OSError: it cannot be read.
        ValueError: VELM cannot build it.
    """
    config = hub.read_config(name, None)
    kind = str(config.model_type)
    if kind in _REFUSED:
        raise ValueError(f"its type is {kind}: {_REFUSED[kind].format(name=name)}.")
    if kind not in _READERS:
        raise ValueError(
            f"its type is {kind}, and VELM imports whole models of the types {', '.join(_READERS)}. Its towers may "
            f"serve as parts: `image_encoder: hf/{name}`, `text_encoder: hf/{name}`."
        )
    return _READERS[kind](name, config)
