"""Copies a peer's weights to VELM's parameter names, to show that both compute the same function."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["from_open_clip", "from_transformers"]

NORMS = {"ln_1": "attention_norm", "ln_2": "mlp_norm", "layer_norm1": "attention_norm", "layer_norm2": "mlp_norm"}
MLPS = {"mlp.c_fc": "mlp.0", "mlp.c_proj": "mlp.3", "mlp.fc1": "mlp.0", "mlp.fc2": "mlp.3"}


def from_open_clip(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of `open_clip.model.CLIP`; also for gradients, except that of the class token.

    open_clip has a class token and a position embedding for it; VELM has one vector, their sum.
    """
    ours = {
        "image_encoder.patches.weight": theirs["visual.conv1.weight"],
        "image_encoder.patches.bias": torch.zeros_like(theirs["visual.class_embedding"]),
        **_places(theirs["visual.class_embedding"], theirs["visual.positional_embedding"]),
        **_pair("image_encoder.input_norm", theirs, "visual.ln_pre"),
        **_pair("image_encoder.norm", theirs, "visual.ln_post"),
        "image_projection.weight": theirs["visual.proj"].T,
        "text_encoder.embedding.weight": theirs["token_embedding.weight"],
        "text_encoder.positions.weight": theirs["positional_embedding"],
        **_pair("text_encoder.norm", theirs, "ln_final"),
        "text_projection.weight": theirs["text_projection"].T,
    }
    for tower, prefix in (("image_encoder", "visual.transformer.resblocks"), ("text_encoder", "transformer.resblocks")):
        for block in range(_depth(theirs, prefix)):
            mine, yours = f"{tower}.blocks.{block}", f"{prefix}.{block}"
            for kind in ("weight", "bias"):
                whole = theirs[f"{yours}.attn.in_proj_{kind}"]
                parts = whole.tensor_split([len(whole) // 3])
                ours[f"{mine}.attention.query.{kind}"], ours[f"{mine}.attention.key_value.{kind}"] = parts
            ours |= _pair(f"{mine}.attention.output", theirs, f"{yours}.attn.out_proj")
            ours |= _rest_of_block(mine, theirs, yours, ("ln_1", "ln_2"), ("mlp.c_fc", "mlp.c_proj"))
    return ours


def from_transformers(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of `transformers.CLIPModel`; also for gradients, except that of the class token."""
    vision, text = "vision_model", "text_model"
    ours = {
        "image_encoder.patches.weight": theirs[f"{vision}.embeddings.patch_embedding.weight"],
        "image_encoder.patches.bias": torch.zeros_like(theirs[f"{vision}.embeddings.class_embedding"]),
        **_places(
            theirs[f"{vision}.embeddings.class_embedding"], theirs[f"{vision}.embeddings.position_embedding.weight"]
        ),
        **_pair("image_encoder.input_norm", theirs, f"{vision}.pre_layrnorm"),
        **_pair("image_encoder.norm", theirs, f"{vision}.post_layernorm"),
        "image_projection.weight": theirs["visual_projection.weight"],
        "text_encoder.embedding.weight": theirs[f"{text}.embeddings.token_embedding.weight"],
        "text_encoder.positions.weight": theirs[f"{text}.embeddings.position_embedding.weight"],
        **_pair("text_encoder.norm", theirs, f"{text}.final_layer_norm"),
        "text_projection.weight": theirs["text_projection.weight"],
    }
    for tower, model in (("image_encoder", vision), ("text_encoder", text)):
        for block in range(_depth(theirs, f"{model}.encoder.layers")):
            mine, yours = f"{tower}.blocks.{block}", f"{model}.encoder.layers.{block}"
            for kind in ("weight", "bias"):
                query, key, value = (theirs[f"{yours}.self_attn.{name}_proj.{kind}"] for name in "qkv")
                ours[f"{mine}.attention.query.{kind}"] = query
                ours[f"{mine}.attention.key_value.{kind}"] = torch.cat([key, value])
            ours |= _pair(f"{mine}.attention.output", theirs, f"{yours}.self_attn.out_proj")
            ours |= _rest_of_block(mine, theirs, yours, ("layer_norm1", "layer_norm2"), ("mlp.fc1", "mlp.fc2"))
    return ours


def _places(class_embedding: Tensor, positions: Tensor) -> dict[str, Tensor]:
    side = round((len(positions) - 1) ** 0.5)
    grid = positions[1:].T.unflatten(1, (side, side))[None]
    return {
        "image_encoder.class_token": class_embedding + positions[0],
        "image_encoder.positions.weight": grid,
    }


def _pair(mine: str, theirs: Mapping[str, Tensor], yours: str) -> dict[str, Tensor]:
    return {f"{mine}.{kind}": theirs[f"{yours}.{kind}"] for kind in ("weight", "bias")}


def _rest_of_block(
    mine: str, theirs: Mapping[str, Tensor], yours: str, norms: tuple[str, ...], linears: tuple[str, ...]
) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name in (*norms, *linears):
        found |= _pair(f"{mine}.{(NORMS | MLPS)[name]}", theirs, f"{yours}.{name}")
    return found


def _depth(theirs: Mapping[str, Tensor], prefix: str) -> int:
    return len({name[len(prefix) + 1 :].split(".")[0] for name in theirs if name.startswith(f"{prefix}.")})
