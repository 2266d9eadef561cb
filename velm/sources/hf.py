"""Whole models of transformers: `hf/<hub id or folder>`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from velm.pretrained import hub
from velm.sources.foreign import ForeignModel
from velm.sources.hf_captioners import blip, git, vision_encoder_decoder
from velm.sources.hf_clip import clip, siglip
from velm.sources.hf_dual import altclip, chinese_clip, vision_text
from velm.sources.hf_vlm import idefics3, llava, paligemma

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
    "llava": llava,
    "paligemma": paligemma,
    "idefics3": idefics3,
    "smolvlm": idefics3,
}
_REFUSED = {
    "siglip2": "it takes images of any shape (NaFlex), and VELM's are squares. Checkpoints of a fixed resolution, "
    "such as google/siglip2-base-patch16-224, are models of type siglip and can be imported",
    "clip_vision_model": "it is an image tower alone. Take it as one: `image_encoder: hf/{name}`",
    "clip_text_model": "it is a text tower alone. Take it as one: `text_encoder: hf/{name}`",
    **dict.fromkeys(
        ("llava_next", "llava_onevision", "idefics2", "mllama", "internvl"),
        "it reads tiles of an image, as many as its shape asks for, and VELM reads one square",
    ),
    **dict.fromkeys(
        ("qwen2_vl", "qwen2_5_vl", "qwen3_vl"),
        "it reads images in their own shape, and counts positions in three dimensions",
    ),
    **dict.fromkeys(("blip-2", "instructblip"), "a Q-Former stands between its image tower and its language model"),
    "kosmos-2": "its captions hold boxes, and a resampler of its own stands behind its image tower",
    "gemma3": "its image positions see each other and the words do not, and its image is pooled to 256 positions. Its "
    "language model may serve as a part: `decoder: llm/{name}`",
    "vipllava": "it reads several blocks of its image tower side by side",
    "video_llava": "it reads videos",
    "florence2": "it solves tasks that are named in its prompt, by text that stands for boxes and regions",
    "align": "its image tower is an EfficientNet whose images are cropped from a larger square, which VELM's transform "
    "does not do. Its text tower may serve as a part: `text_encoder: hf/{name}`",
    "clipseg": "it draws masks of what a text names. The CLIP inside it is openai/clip-vit-base-patch16",
    "groupvit": "it groups pixels into segments by its own kind of blocks",
    "owlvit": "it finds boxes of what a text names",
    "owlv2": "it finds boxes of what a text names",
    "clap": "it compares sounds with texts",
    "flava": "it compares images with texts by encoders that read both",
}
_TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")


def describe(name: str) -> ForeignModel:
    """The model of a hub id or a folder, see `velm.sources.describe_source`.

    Raises:
        OSError: it cannot be read.
        ValueError: VELM cannot build it.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        _check_config(folder)
    config = hub.read_config(name, None)
    kind = str(config.model_type)
    if kind in _REFUSED:
        raise ValueError(f"its type is {kind}: {_REFUSED[kind].format(name=name)}.")
    if kind not in _READERS:
        raise ValueError(
            f"its type is {kind}, and VELM imports whole models of the types {', '.join(_READERS)}. Its towers may "
            f"serve as parts: `image_encoder: hf/{name}`, `text_encoder: hf/{name}`."
        )
    if folder.is_dir() and not any(any(folder.glob(pattern)) for pattern in _TOKENIZERS):
        raise ValueError(
            f"the folder has no tokenizer ({', '.join(_TOKENIZERS)}). Put the tokenizer files of the original model "
            f"there."
        )
    return _READERS[kind](name, config)


def _check_config(folder: Path) -> None:
    """Raise a ValueError that says what is wrong with the config.json of a folder."""
    path = folder / "config.json"
    if not path.is_file():
        other = folder / "open_clip_config.json"
        advice = (
            f"It is a model of open_clip: open_clip/{folder}." if other.is_file() else "Save it by save_pretrained."
        )
        raise ValueError(f"the folder has no config.json. {advice}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"its config.json is no JSON: {error}.") from error
    if not config.get("model_type") and "auto_map" not in config:
        raise ValueError(
            "its config.json names no model_type, so it is not known what its weights are. Take the config.json of "
            "the original model."
        )
