"""CLIP, MetaCLIP and SigLIP of transformers, whose towers become VELM's own."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from velm.data.text.hf import HFTokenizer
from velm.pretrained import hub
from velm.sources.foreign import ForeignModel
from velm.sources.hf_images import image_options
from velm.sources.state_dict import (
    StateDict,
    class_token,
    embedding_rows,
    fused_attention,
    grid_positions,
    renamed,
    split_block,
)

__all__ = [
    "activation",
    "clip",
    "clip_image_encoder",
    "clip_image_weights",
    "clip_weights",
    "siglip",
    "siglip_image_encoder",
    "siglip_image_weights",
    "siglip_weights",
]

_ACTIVATIONS = {
    "gelu": "gelu", "quick_gelu": "quick_gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh",
}  # fmt: skip


def activation(name: str) -> str:
    """VELM's name of an activation of transformers.

    Raises:
        ValueError: VELM has none like it.
    """
    if name not in _ACTIVATIONS:
        raise ValueError(f"its activation is {name!r}; VELM's towers have {', '.join(_ACTIVATIONS)}.")
    return _ACTIVATIONS[name]


def clip(name: str, config: Any) -> ForeignModel:
    """`CLIPModel` and `MetaClip2Model` (Radford et al. 2021, arXiv 2103.00020)."""
    text, vision = config.text_config, config.vision_config
    data, mean, std = image_options(name, vision.image_size)
    length = int(text.max_position_embeddings)
    model = {
        "image_encoder": clip_image_encoder(vision, mean, std),
        "text_encoder": {**_blocks(text), "max_length": length, "pooling": "last", "causal": True},
        "embed_dim": int(config.projection_dim),
        "image_projection": "linear",
        "text_projection": "linear",
    }
    losses = {"contrastive": {"temperature": math.exp(-config.logit_scale_init_value)}}
    return ForeignModel(
        name=f"hf/{name}",
        model=model,
        data={"tokenizer": {"name": f"hf/{name}"}, **data, "max_length": length},
        losses=losses,
        read_weights=partial(_read, clip_weights, name, config),
    )


def clip_image_encoder(vision: Any, mean: list[float], std: list[float]) -> dict[str, Any]:
    """The part config of CLIP's image tower."""
    return {
        **_blocks(vision, "vit"), "patch_size": int(vision.patch_size), "positions": "learned",
        "position_grid": int(vision.image_size) // int(vision.patch_size), "position_antialias": False,
        "pooling": "class", "input_norm": True, "patch_bias": False, "image_mean": mean, "image_std": std,
    }  # fmt: skip


def _blocks(config: Any, name: str = "transformer") -> dict[str, Any]:
    """The options of a stack of blocks that `vit` and `transformer` share."""
    if float(getattr(config, "attention_dropout", 0.0)):
        raise ValueError(
            f"its attention_dropout is {config.attention_dropout}, and VELM's towers drop no attention weights."
        )
    return {
        "name": name, "dim": int(config.hidden_size), "depth": int(config.num_hidden_layers),
        "heads": int(config.num_attention_heads), "mlp_ratio": config.intermediate_size / config.hidden_size,
        "activation": activation(config.hidden_act), "norm_eps": float(config.layer_norm_eps),
    }  # fmt: skip


def siglip_image_encoder(vision: Any, mean: list[float], std: list[float]) -> dict[str, Any]:
    """The part config of SigLIP's image tower, and of Idefics3's; `pooling` is to be added."""
    return {
        **_blocks(vision, "vit"), "patch_size": int(vision.patch_size), "positions": "learned",
        "position_grid": int(vision.image_size) // int(vision.patch_size), "position_antialias": False,
        "image_mean": mean, "image_std": std,
    }  # fmt: skip


def clip_image_weights(state: StateDict, tower: str, depth: int, output_norm: bool = True) -> dict[str, Tensor]:
    """Weights of CLIP's image tower, `tower` being their prefix, for `clip_image_encoder`."""
    embeddings = f"{tower}embeddings"
    token = state.take(f"{embeddings}.class_embedding")
    weights = {
        "patches.weight": state.take(f"{embeddings}.patch_embedding.weight"),
        **class_token(token, state.take(f"{embeddings}.position_embedding.weight")),
        **state.linear(f"{tower}pre_layrnorm", "input_norm"),
    }
    return weights | _image_blocks(state, tower, depth, output_norm)


def siglip_image_weights(state: StateDict, tower: str, depth: int, output_norm: bool = True) -> dict[str, Tensor]:
    """Weights of SigLIP's image tower without its pooling, for `siglip_image_encoder`."""
    weights = {
        **state.linear(f"{tower}embeddings.patch_embedding", "patches"),
        "positions.weight": grid_positions(state.take(f"{tower}embeddings.position_embedding.weight")),
    }
    return weights | _image_blocks(state, tower, depth, output_norm)


def _image_blocks(state: StateDict, tower: str, depth: int, output_norm: bool) -> dict[str, Tensor]:
    weights = state.linear(f"{tower}post_layernorm", "norm") if output_norm else {}
    for block in range(depth):
        weights |= split_block(state, f"{tower}encoder.layers.{block}", f"blocks.{block}")
    return weights


def _text_weights(state: StateDict, depth: int, vocab_size: int) -> dict[str, Tensor]:
    embeddings = "text_model.embeddings"
    weights = {
        "embedding.weight": embedding_rows(state.take(f"{embeddings}.token_embedding.weight"), vocab_size),
        "positions.weight": state.take(f"{embeddings}.position_embedding.weight"),
        **state.linear("text_model.final_layer_norm", "norm"),
    }
    for block in range(depth):
        weights |= split_block(state, f"text_model.encoder.layers.{block}", f"blocks.{block}")
    return weights


def _read(translate: Callable[..., dict[str, Tensor]], name: str, config: Any, vocab_size: int) -> dict[str, Tensor]:
    model = hub.build(hub.model_class(config), config, name, pretrained=True)
    state = StateDict(model.state_dict(), f"hf/{name}")
    weights = translate(state, config, vocab_size)
    state.finish()
    return weights


def clip_weights(state: StateDict, config: Any, vocab_size: int) -> dict[str, Tensor]:
    """Weights of `CLIPModel` by their names in a task."""
    image = clip_image_weights(state, "vision_model.", config.vision_config.num_hidden_layers)
    text = _text_weights(state, config.text_config.num_hidden_layers, vocab_size)
    return {
        **renamed(image, "model.image_encoder."),
        **renamed(text, "model.text_encoder."),
        **state.linear("visual_projection", "model.image_projection", bias=False),
        **state.linear("text_projection", "model.text_projection", bias=False),
        "losses.contrastive.log_scale": state.take("logit_scale").reshape(()),
    }


def siglip(name: str, config: Any) -> ForeignModel:
    """`SiglipModel`, of SigLIP and of SigLIP 2 at a fixed resolution (arXiv 2303.15343, 2502.14786).

    A text has no bos, is filled up to its full length without a mask, and is pooled at its last position.
    """
    text, vision = config.text_config, config.vision_config
    if not getattr(vision, "vision_use_head", True):
        raise ValueError("its image tower has no pooling head (vision_use_head: false), so it makes no embedding.")
    data, mean, std = image_options(name, vision.image_size)
    length = int(text.max_position_embeddings)
    embed_dim = int(getattr(text, "projection_size", None) or text.hidden_size)
    model = {
        "image_encoder": siglip_image_encoder(vision, mean, std) | {"pooling": "map"},
        "text_encoder": {
            **_blocks(text), "max_length": length + 1, "pooling": "end", "fixed_length": length,
            "fill_id": HFTokenizer(model_name=name).padded_with, "reads_bos": False,
        },
        "embed_dim": embed_dim,
        "image_projection": "none",
        "text_projection": "affine",
    }  # fmt: skip
    return ForeignModel(
        name=f"hf/{name}",
        model=model,
        data={"tokenizer": {"name": f"hf/{name}"}, **data, "max_length": length + 1},
        losses={"sigmoid": {}},
        read_weights=partial(_read, siglip_weights, name, config),
    )


def siglip_weights(state: StateDict, config: Any, vocab_size: int) -> dict[str, Tensor]:
    """Weights of `SiglipModel` by their names in a task."""
    tower = "vision_model."
    image = {
        **siglip_image_weights(state, tower, config.vision_config.num_hidden_layers),
        "pooling.query": state.take(f"{tower}head.probe").flatten(),
        **fused_attention(state, f"{tower}head.attention", "pooling.attention"),
        **state.linear(f"{tower}head.layernorm", "pooling.norm"),
        **state.linear(f"{tower}head.mlp.fc1", "pooling.mlp.0"),
        **state.linear(f"{tower}head.mlp.fc2", "pooling.mlp.3"),
    }
    text = _text_weights(state, config.text_config.num_hidden_layers, vocab_size)
    return {
        **renamed(image, "model.image_encoder."),
        **renamed(text, "model.text_encoder."),
        **state.linear("text_model.head", "model.text_projection"),
        "losses.sigmoid.log_scale": state.take("logit_scale").reshape(()),
        "losses.sigmoid.bias": state.take("logit_bias").reshape(()),
    }
