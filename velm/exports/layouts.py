"""Weights of VELM's towers by the names of transformers; the inverse of `velm.sources.state_dict`."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = [
    "block", "class_positions", "clip_image", "fused_attention", "fused_block", "linear", "siglip_image", "text_tower",
]  # fmt: skip

Weights = Mapping[str, Tensor]


def linear(weights: Weights, name: str, to: str) -> dict[str, Tensor]:
    """Weight and bias, if there is one, under the name `to`."""
    parts = ("weight", "bias") if f"{name}.bias" in weights else ("weight",)
    return {f"{to}.{part}": weights[f"{name}.{part}"] for part in parts}


def block(weights: Weights, name: str, to: str) -> dict[str, Tensor]:
    """A `TransformerBlock` with separate queries, keys and values."""
    attention = f"{name}.attention"
    split = {
        f"{to}.self_attn.{part}_proj.{kind}": half
        for kind in ("weight", "bias")
        for part, half in zip("kv", weights[f"{attention}.key_value.{kind}"].chunk(2), strict=True)
    }
    return {
        **linear(weights, f"{name}.attention_norm", f"{to}.layer_norm1"),
        **linear(weights, f"{attention}.query", f"{to}.self_attn.q_proj"),
        **split,
        **linear(weights, f"{attention}.output", f"{to}.self_attn.out_proj"),
        **linear(weights, f"{name}.mlp_norm", f"{to}.layer_norm2"),
        **linear(weights, f"{name}.mlp.0", f"{to}.mlp.fc1"),
        **linear(weights, f"{name}.mlp.3", f"{to}.mlp.fc2"),
    }


def rows_of_grid(positions: Tensor) -> Tensor:
    """Positions (1, D, side, side) as rows (N, D)."""
    return positions[0].flatten(1).T.contiguous()


def class_positions(weights: Weights, prefix: str = "") -> Tensor:
    """Positions (1 + N, D) of a class token and of the patches of a `ViTEncoder`, for a tower as CLIP's.

    The class token of VELM holds its position, which is 0 therefore; CLIP's patches have no bias, which their positions
    hold therefore.
    """
    rows, bias = rows_of_grid(weights[f"{prefix}positions.weight"]), weights.get(f"{prefix}patches.bias")
    return torch.cat([torch.zeros_like(rows[:1]), rows if bias is None else rows + bias])


def clip_image(weights: Weights, to: str, depth: int) -> dict[str, Tensor]:
    """A `ViTEncoder` in CLIP's form."""
    return {
        f"{to}embeddings.class_embedding": weights["class_token"],
        f"{to}embeddings.position_embedding.weight": class_positions(weights),
        f"{to}embeddings.patch_embedding.weight": weights["patches.weight"],
        **linear(weights, "input_norm", f"{to}pre_layrnorm"),
        **_blocks(weights, to, depth),
    }


def siglip_image(weights: Weights, to: str, depth: int) -> dict[str, Tensor]:
    """A `ViTEncoder` in SigLIP's form, without its pooling."""
    patches = weights["patches.weight"]
    return {
        f"{to}embeddings.patch_embedding.bias": patches.new_zeros(len(patches)),
        **linear(weights, "patches", f"{to}embeddings.patch_embedding"),
        f"{to}embeddings.position_embedding.weight": rows_of_grid(weights["positions.weight"]),
        **_blocks(weights, to, depth),
    }


def _blocks(weights: Weights, to: str, depth: int) -> dict[str, Tensor]:
    tensors = linear(weights, "norm", f"{to}post_layernorm") if "norm.weight" in weights else {}
    for number in range(depth):
        tensors |= block(weights, f"blocks.{number}", f"{to}encoder.layers.{number}")
    return tensors


def text_tower(weights: Weights, depth: int, rows: list[int]) -> dict[str, Tensor]:
    """A `TransformerEncoder`; `rows` are the ids of VELM in the order of the ids of the written tokenizer."""
    tensors = {
        "text_model.embeddings.token_embedding.weight": weights["embedding.weight"][rows],
        "text_model.embeddings.position_embedding.weight": weights["positions.weight"],
        **linear(weights, "norm", "text_model.final_layer_norm"),
    }
    for number in range(depth):
        tensors |= block(weights, f"blocks.{number}", f"text_model.encoder.layers.{number}")
    return tensors


def fused_attention(weights: Weights, name: str, to: str) -> dict[str, Tensor]:
    """An `Attention` as torch's `nn.MultiheadAttention`, whose three matrices are one if they have the same width."""
    parts = {
        kind: (weights[f"{name}.query.{kind}"], weights[f"{name}.key_value.{kind}"]) for kind in ("weight", "bias")
    }
    tensors = {**linear(weights, f"{name}.output", f"{to}.out_proj"), f"{to}.in_proj_bias": torch.cat(parts["bias"])}
    query, rest = parts["weight"]
    if query.shape[1] == rest.shape[1]:
        return {**tensors, f"{to}.in_proj_weight": torch.cat([query, rest])}
    keys, values = rest.chunk(2)
    return {**tensors, f"{to}.q_proj_weight": query, f"{to}.k_proj_weight": keys, f"{to}.v_proj_weight": values}


def fused_block(weights: Weights, name: str, to: str) -> dict[str, Tensor]:
    """A `TransformerBlock` as one of open_clip."""
    return {
        **linear(weights, f"{name}.attention_norm", f"{to}.ln_1"),
        **fused_attention(weights, f"{name}.attention", f"{to}.attn"),
        **linear(weights, f"{name}.mlp_norm", f"{to}.ln_2"),
        **linear(weights, f"{name}.mlp.0", f"{to}.mlp.c_fc"),
        **linear(weights, f"{name}.mlp.3", f"{to}.mlp.c_proj"),
    }
