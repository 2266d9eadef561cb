"""open_clip's text towers: its own Transformer, and text models of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from velm.data.text.hf import HFTokenizer
from velm.pretrained import hub
from velm.sources.open_clip_images import activation, norm_eps
from velm.sources.state_dict import StateDict, embedding_rows, fused_block, renamed
from velm.sources.tower import Tower, require_known

__all__ = ["own_prefix", "text_tower", "text_weights"]

_OWN = {
    "context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "pool_type", "act_kwargs", "norm_kwargs",
    "no_causal_mask", "proj_bias", "proj_type", "tokenizer_kwargs", "hf_tokenizer_name", "pad_id", "eos_id",
    "output_tokens", "embed_cls",
}  # fmt: skip
_HF = {
    "hf_model_name", "hf_model_pretrained", "hf_tokenizer_name", "hf_proj_type", "hf_pooler_type", "context_length",
    "tokenizer_kwargs", "output_tokens", "width", "vocab_size",
}  # fmt: skip
_POOLINGS = {"mean_pooler": "mean", "cls_pooler": "first", "cls_last_hidden_state_pooler": "first"}
_DEFAULT_POOLERS = {"bert": "cls_pooler", "m2m_100": "cls_pooler"}  # open_clip's hf_configs.py; others: mean_pooler
_TO = "model.text_encoder."


def text_tower(
    text: Mapping[str, Any], embed_dim: int, quick: bool, folder: Path | None
) -> tuple[Tower, dict[str, Any], int]:
    """The text tower of a `text_cfg`, the config of its tokenizer, and the longest text in tokens, bos included.

    Raises:
        OSError: the config or the tokenizer of a model of transformers cannot be read.
        ValueError: VELM has no such tower.
    """
    if text.get("hf_model_name"):
        return _hf_tower(text, embed_dim, folder)
    require_known("text_cfg", text, _OWN)
    tokenizer = _tokenizer(text, folder)
    config, projection = _transformer(text, quick, tokenizer), "affine" if text.get("proj_bias") else "linear"
    if text.get("proj_type") == "none":
        projection = "none"
    tower = Tower(config, projection, partial(_own_weights, config, projection))
    return tower, tokenizer, config["max_length"]


def _transformer(text: Mapping[str, Any], quick: bool, tokenizer: Mapping[str, Any]) -> dict[str, Any]:
    length, bidirectional = int(text.get("context_length", 77)), bool(text.get("no_causal_mask"))
    pool = text.get("pool_type", "argmax")
    if pool not in ("argmax", "eos", "last"):
        raise ValueError(f"its text tower pools by {pool!r}; VELM imports argmax, eos and last.")
    tower: dict[str, Any] = {
        "name": "transformer", "dim": int(text.get("width", 512)), "depth": int(text.get("layers", 12)),
        "heads": int(text.get("heads", 8)), "mlp_ratio": float(text.get("mlp_ratio", 4.0)), "max_length": length,
        "pooling": "last", "causal": not bidirectional, "activation": activation(text, quick),
        "norm_eps": norm_eps(text),
    }  # fmt: skip
    if bidirectional or pool == "last":  # it attends over the padding, which is the tokenizer's
        fill = 0 if tokenizer["name"] == "clip" else _words(tokenizer).padded_with
        tower |= {"fixed_length": length, "fill_id": fill}
    if pool == "last":  # SigLIP: no bos, and the last position of the padding is pooled
        tower |= {"pooling": "end", "reads_bos": False, "max_length": length + 1}
    return tower


def _words(tokenizer: Mapping[str, Any]) -> HFTokenizer:
    return HFTokenizer(model_name=tokenizer["name"].removeprefix("hf/"))


def _tokenizer(text: Mapping[str, Any], folder: Path | None) -> dict[str, Any]:
    name = text.get("hf_tokenizer_name") or text.get("hf_model_name")
    if name is None:
        return {"name": "clip"}
    options = text.get("tokenizer_kwargs") or {}
    if options.get("strip_sep_token"):
        raise ValueError("its tokenizer strips [SEP] (CLIPA), which VELM's do not.")
    local = folder is not None and any((folder / file).is_file() for file in ("tokenizer.json", "spiece.model"))
    return {"name": f"hf/{folder if local else name}", "clean": options.get("clean") or "whitespace"}


def own_prefix(state: StateDict) -> str:
    """Where a state dict has the text tower: flat in open_clip's CLIP, under 'text.' in CustomTextCLIP and CoCa."""
    return "text." if "text.positional_embedding" in state else ""


def text_weights(state: StateDict, prefix: str, depth: int, vocab_size: int) -> dict[str, Tensor]:
    """Embeddings and blocks of open_clip's own text tower."""
    weights = {"embedding.weight": embedding_rows(state.take(f"{prefix}token_embedding.weight"), vocab_size)}
    for block in range(depth):
        weights |= fused_block(state, f"{prefix}transformer.resblocks.{block}", f"blocks.{block}")
    return weights


def _own_weights(config: Mapping[str, Any], projection: str, state: StateDict, vocab_size: int) -> dict[str, Tensor]:
    prefix, to = own_prefix(state), "model.text_projection"
    weights = {
        **text_weights(state, prefix, config["depth"], vocab_size),
        "positions.weight": state.take(f"{prefix}positional_embedding"),
        **state.linear(f"{prefix}ln_final", "norm"),
    }
    out: dict[str, Tensor] = {}
    if projection == "affine":
        out = state.linear(f"{prefix}text_projection", to)
    elif projection == "linear":
        out = {f"{to}.weight": state.take(f"{prefix}text_projection").T.contiguous()}
    return {**renamed(weights, _TO), **out}


def _hf_tower(text: Mapping[str, Any], embed_dim: int, folder: Path | None) -> tuple[Tower, dict[str, Any], int]:
    """A text model of transformers: padded, with a mask, and pooled over the content.

    Its config and tokenizer are read from the hub, the cache or a folder.
    """
    require_known("text_cfg", text, _HF)
    name, tokenizer = str(text["hf_model_name"]), _tokenizer(text, folder)
    config = hub.read_config(name, None)
    kind = str(config.model_type)
    pooler = text.get("hf_pooler_type", "mean_pooler") or _DEFAULT_POOLERS.get(kind, "mean_pooler")
    if pooler not in _POOLINGS:
        raise ValueError(f"its hf_pooler_type is {pooler!r}; VELM imports {', '.join(_POOLINGS)}.")
    own = pooler == "cls_pooler" and not getattr(config, "is_encoder_decoder", False)  # BERT's pooling layer
    projection = _hf_projection(text, int(config.hidden_size), embed_dim)
    options = {key: value for key, value in hub.portable_config(config).items() if key != "vocab_size"}
    part: dict[str, Any] = {"name": f"hf/{kind}", "config": options, "pooling": "pooler" if own else _POOLINGS[pooler]}
    length = int(text.get("context_length", 77))
    words = _words(tokenizer)
    if words.starts_with is None:
        part["reads_bos"], length = False, length + 1
    elif words.starts_with != words.bos_id:
        part["bos_id"] = words.starts_with
    return Tower(part, projection, partial(_hf_weights, projection)), tokenizer, length


def _hf_projection(text: Mapping[str, Any], width: int, embed_dim: int) -> str:
    kind = text.get("hf_proj_type", "mlp")
    if kind is None and width == embed_dim:
        return "none"
    if kind not in ("linear", "mlp"):
        raise ValueError(
            f"its hf_proj_type is {kind!r} between a width of {width} and embed_dim {embed_dim}; VELM imports linear "
            f"and mlp."
        )
    return str(kind)


def _hf_weights(projection: str, state: StateDict, vocab_size: int) -> dict[str, Tensor]:
    model = state.below("text.transformer.")
    for name in [name for name in model if name.endswith("position_ids")]:  # of older versions of transformers
        del model[name]
    for name in model:
        if name.endswith(("word_embeddings.weight", "embed_tokens.weight")):
            model[name] = embedding_rows(model[name], vocab_size)
    to, out = "model.text_projection", {}
    if projection == "linear":
        out = state.linear("text.proj", to, bias=False)
    elif projection == "mlp":
        out = {**state.linear("text.proj.0", f"{to}.0", False), **state.linear("text.proj.2", f"{to}.2", False)}
    return {**renamed(model, f"{_TO}model."), **out}
