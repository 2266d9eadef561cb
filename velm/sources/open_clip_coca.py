"""open_clip's CoCa (Yu et al. 2022, arXiv 2205.01917): the decoder, whose lowest blocks are the text tower."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from velm.sources.open_clip_texts import text_weights
from velm.sources.state_dict import StateDict, fused_attention, fused_block, renamed
from velm.sources.tower import Tower, require_known

__all__ = ["captioner", "captioner_weights"]

_KNOWN = {
    "context_length", "vocab_size", "width", "heads", "layers", "output_tokens",
    "mlp_ratio", "dim_head", "n_queries", "attn_pooler_heads",  # open_clip reads none of these here
}  # fmt: skip
NEVER = -1e4
"""Bias of a token that the model does not have, VELM's own pad and unk: its probability is 0."""


def captioner(multimodal: Mapping[str, Any], text: Mapping[str, Any], unimodal: Mapping[str, Any]) -> dict[str, Any]:
    """The part config of the decoder.

    Args:
        multimodal: `multimodal_cfg`, of the blocks with cross-attention.
        text: `text_cfg`, of the blocks without.
        unimodal: config of that tower, see `velm.sources.open_clip_texts.text_tower`.

    Raises:
        ValueError: VELM has no such decoder.
    """
    if text.get("hf_model_name"):
        raise ValueError(
            f"it is a CoCa whose words are read by {text['hf_model_name']}, which sees the words that the decoder is "
            f"to predict; VELM imports CoCa with open_clip's own text tower."
        )
    if not text.get("embed_cls"):
        raise ValueError("it is a CoCa whose texts do not end with a class token (embed_cls), which VELM has not.")
    require_known("multimodal_cfg", multimodal, _KNOWN)
    sizes = {"width": 512, "heads": 8, "layers": 12, "context_length": 77}
    width, heads, layers, length = (int(multimodal.get(*pair)) for pair in sizes.items())
    ours = {"width": unimodal["dim"], "heads": unimodal["heads"], "context_length": unimodal["max_length"]}
    for name, value in ours.items():
        if value != (theirs := {"width": width, "heads": heads, "context_length": length}[name]):
            raise ValueError(f"its text_cfg has {name} {value}, its multimodal_cfg {theirs}; VELM's decoder has one.")
    if unimodal["mlp_ratio"] != 4.0 or unimodal["norm_eps"] != 1e-5:
        raise ValueError("its text tower has another mlp_ratio or norm than its decoder; VELM's decoder has one.")
    if not unimodal["causal"]:
        raise ValueError("its text tower is not causal, so the decoder would see the words that it is to predict.")
    return {
        "name": "transformer", "dim": width, "depth": unimodal["depth"] + layers, "unimodal_depth": unimodal["depth"],
        "heads": heads, "max_length": length, "activation": unimodal["activation"], "alternating": True,
        "tie_embeddings": False,
    }  # fmt: skip


def captioner_weights(image: Tower, decoder: Mapping[str, Any], state: StateDict, vocab_size: int) -> dict[str, Tensor]:
    """The weights of both encoders and of the decoder."""
    positions, unimodal = state.take("text.positional_embedding"), decoder["unimodal_depth"]
    weights = {
        **text_weights(state, "text.", unimodal, vocab_size),
        "positions.weight": positions[:-1].clone(),
        **state.linear("text_decoder.ln_final", "norm"),
        **_output(state.take("text_decoder.text_projection"), vocab_size),
    }
    for block in range(decoder["depth"] - unimodal):
        weights |= _multimodal_block(state, block, f"blocks.{unimodal + block}")
    return {
        **image.weights(state, vocab_size),
        **renamed(weights, "model.decoder."),
        "model.text_encoder.class_token": state.take("text.cls_emb") + positions[-1],
        **state.linear("text.ln_final", "model.text_encoder.norm"),
        "model.text_projection.weight": state.take("text.text_projection").T.contiguous(),
    }


def _multimodal_block(state: StateDict, block: int, to: str) -> dict[str, Tensor]:
    """A block of self-attention and one of cross-attention as one `AlternatingBlock`."""
    cross = f"text_decoder.cross_attn.{block}"
    return {
        **fused_block(state, f"text_decoder.resblocks.{block}", to),
        **state.linear(f"{cross}.ln_1", f"{to}.memory_norm"),
        **state.linear(f"{cross}.ln_1_kv", f"{to}.keys_norm"),
        **fused_attention(state, f"{cross}.attn", f"{to}.memory_attention"),
        **state.linear(f"{cross}.ln_2", f"{to}.memory_mlp_norm"),
        **state.linear(f"{cross}.mlp.c_fc", f"{to}.memory_mlp.0"),
        **state.linear(f"{cross}.mlp.c_proj", f"{to}.memory_mlp.3"),
    }


def _output(projection: Tensor, vocab_size: int) -> dict[str, Tensor]:
    """The output projection (D, V'), without a bias, for V tokens."""
    known = projection.T[:vocab_size]
    weight, bias = projection.new_zeros(vocab_size, len(projection)), torch.full((vocab_size,), NEVER)
    weight[: len(known)], bias[: len(known)] = known, 0.0
    return {"output_projection.weight": weight, "output_projection.bias": bias}
