"""open_clip's CoCa, whose decoder begins with the text tower; the inverse of `velm.sources.open_clip_coca`."""

from __future__ import annotations

import torch
from torch import Tensor

from velm.checkpoint import Checkpoint, weights_of
from velm.exports.layouts import fused_attention, fused_block, linear
from velm.exports.open_clip_images import OpenClipTower, variants
from velm.exports.open_clip_texts import TOKENS, clip_tokenizer_limits, own_weights
from velm.exports.requirements import options_of, part_limits, projection_limits
from velm.pipeline import Pipeline

__all__ = ["coca_texts"]

_DECODER = {"alternating": True, "tie_embeddings": False, "mlp_ratio": 4.0}


def coca_texts(checkpoint: Checkpoint, pipeline: Pipeline, cls: str) -> OpenClipTower:
    """The text tower and the decoder of a checkpoint."""
    limits = part_limits(checkpoint, "text_encoder", "decoder", {"pooling": "class"}, cls)
    limits += part_limits(checkpoint, "decoder", "transformer", _DECODER, cls)
    limits += projection_limits(checkpoint, {"text_projection": "linear"}, cls, scaled=False)
    limits += clip_tokenizer_limits(checkpoint, cls)
    if list(checkpoint.config.get("memory") or ["image"]) != ["image"]:
        limits.append(f"memory is {checkpoint.config['memory']}, and {cls} reads images")
    weights = weights_of("decoder", checkpoint.weights)
    bias = weights.get("output_projection.bias")
    if bias is not None and bool((bias[:TOKENS] != 0).any()):
        limits.append(f"its output projection has a bias, and that of {cls} has none")
    if limits:
        return OpenClipTower(limits=limits)
    text, decoder = (options_of(checkpoint, part)[1] for part in ("text_encoder", "decoder"))
    fill = pipeline.tokenizer.pad_id if text["fill_id"] is None else text["fill_id"]
    lowest, length = decoder["unimodal_depth"], decoder["max_length"]
    shared = {"context_length": length, "vocab_size": TOKENS, "width": decoder["dim"], "heads": decoder["heads"]}
    config = {
        "text_cfg": {**shared, "layers": lowest, "embed_cls": True, "output_tokens": True, "pad_id": fill,
                     **variants(decoder)},
        "multimodal_cfg": {**shared, "layers": decoder["depth"] - lowest}, "custom_text": True, "pad_id": fill,
    }  # fmt: skip
    return OpenClipTower(config, _weights(checkpoint, weights, lowest, decoder["depth"]))


def _weights(checkpoint: Checkpoint, decoder: dict[str, Tensor], lowest: int, depth: int) -> dict[str, Tensor]:
    """The class token of a text holds the position behind the longest text, which is 0 therefore."""
    token, positions = checkpoint.weights["text_encoder.class_token"], decoder["positions.weight"]
    tensors = {
        **own_weights(decoder, lowest, "text.", TOKENS),
        "text.positional_embedding": torch.cat([positions, torch.zeros_like(positions[:1])]),
        "text.cls_emb": token,
        **linear(checkpoint.weights, "text_encoder.norm", "text.ln_final"),
        "text.text_projection": checkpoint.weights["text_projection.weight"].T,
        **linear(decoder, "norm", "text_decoder.ln_final"),
        "text_decoder.text_projection": decoder["output_projection.weight"][:TOKENS].T,
    }
    for number in range(depth - lowest):
        block, cross = f"blocks.{lowest + number}", f"text_decoder.cross_attn.{number}"
        tensors |= {
            **fused_block(decoder, block, f"text_decoder.resblocks.{number}"),
            **linear(decoder, f"{block}.memory_norm", f"{cross}.ln_1"),
            **linear(decoder, f"{block}.keys_norm", f"{cross}.ln_1_kv"),
            **fused_attention(decoder, f"{block}.memory_attention", f"{cross}.attn"),
            **linear(decoder, f"{block}.memory_mlp_norm", f"{cross}.ln_2"),
            **linear(decoder, f"{block}.memory_mlp.0", f"{cross}.mlp.c_fc"),
            **linear(decoder, f"{block}.memory_mlp.3", f"{cross}.mlp.c_proj"),
        }
    return tensors
