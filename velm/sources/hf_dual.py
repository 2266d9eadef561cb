"""Chinese-CLIP, AltCLIP and VisionTextDualEncoder of transformers: other text towers beside an image tower."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from torch import Tensor

from velm.sources.foreign import ForeignModel
from velm.sources.hf_clip import clip_image_encoder, clip_image_weights
from velm.sources.hf_images import image_options
from velm.sources.hf_towers import (
    class_prefix,
    image_tower,
    open_tokenizer,
    read_model,
    require_class,
    text_length,
    text_tower,
    text_tower_weights,
)
from velm.sources.state_dict import StateDict, renamed

__all__ = ["altclip", "chinese_clip", "vision_text"]


def chinese_clip(name: str, config: Any) -> ForeignModel:
    """`ChineseCLIPModel` (Yang et al. 2022, arXiv 2211.01335): CLIP's image tower, and BERT pooled at [CLS]."""
    return _with_clip_images(name, config, "ChineseCLIPModel")


def altclip(name: str, config: Any) -> ForeignModel:
    """`AltCLIPModel` (Chen et al. 2022, arXiv 2211.06679): CLIP's image tower, and XLM-R, projected, pooled at <s>."""
    return _with_clip_images(name, config, "AltCLIPModel")


def _with_clip_images(name: str, config: Any, cls: str) -> ForeignModel:
    data, mean, std = image_options(name, config.vision_config.image_size)
    image = clip_image_encoder(config.vision_config, mean, std)
    return _dual(name, config, cls, image, text_tower(config.text_config, "first"), data)


def vision_text(name: str, config: Any) -> ForeignModel:
    """`VisionTextDualEncoderModel`: any two towers, of each the vector of its pooling layer; CLIP's is VELM's `vit`."""
    size = getattr(config.vision_config, "image_size", None)
    data, mean, std = image_options(name, size if isinstance(size, int) else 224)
    if config.vision_config.model_type == "clip_vision_model":
        image = clip_image_encoder(config.vision_config, mean, std)
    else:
        image = image_tower(config.vision_config, mean, std, pooling="pooler")
    return _dual(name, config, "VisionTextDualEncoderModel", image, text_tower(config.text_config, "pooler"), data)


def _dual(
    name: str, config: Any, cls: str, image: dict[str, Any], text: dict[str, Any], data: dict[str, Any]
) -> ForeignModel:
    require_class(config, cls)
    return ForeignModel(
        name=f"hf/{name}",
        model={
            "image_encoder": image,
            "text_encoder": text,
            "embed_dim": int(config.projection_dim),
            "image_projection": "linear",
            "text_projection": "linear",
        },
        data={
            "tokenizer": {"name": f"hf/{name}"}, **data, "max_length": text_length(text, open_tokenizer(name)),
        },
        losses={"contrastive": {"temperature": math.exp(-config.logit_scale_init_value)}},
        read_weights=partial(_weights, name, config, cls, image["name"] == "vit"),
    )  # fmt: skip


def _weights(name: str, config: Any, cls: str, own_images: bool, vocab_size: int) -> dict[str, Tensor]:
    model, state = read_model(name, config, cls)
    weights = {
        **(_own_images(state, config) if own_images else _library_images(state)),
        **text_tower_weights(state, "text_model.", model.text_model, vocab_size),
        **state.linear("visual_projection", "model.image_projection", bias=False),
        **state.linear("text_projection", "model.text_projection", bias=False),
        "losses.contrastive.log_scale": state.take("logit_scale").reshape(()),
    }  # fmt: skip
    state.finish()
    return weights


def _library_images(state: StateDict) -> dict[str, Tensor]:
    return renamed(state.below("vision_model."), "model.image_encoder.model.")


def _own_images(state: StateDict, config: Any) -> dict[str, Tensor]:
    depth = config.vision_config.num_hidden_layers
    return renamed(clip_image_weights(state, class_prefix(state), depth), "model.image_encoder.")
