"""open_clip's text towers: its own Transformer, and text models of transformers that have a name on the hub."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from velm.checkpoint import Checkpoint, weights_of
from velm.data.text.clip import CLIPTokenizer
from velm.data.text.hf import HFTokenizer
from velm.exports.hf_tokenizer import HubTokenizer, published
from velm.exports.layouts import fused_block, linear
from velm.exports.open_clip_images import OpenClipTower, variants
from velm.exports.requirements import options_of, part_limits
from velm.pipeline import Pipeline
from velm.pretrained import hub

__all__ = ["TOKENS", "clip_tokenizer_limits", "own_weights", "text_tower"]

TOKENS = 49_408
"""Of open_clip's tokenizer, whose largest id is eos."""
_CAUSAL = {"positions": "learned", "pooling": "last", "causal": True, "fixed_length": None, "reads_bos": True}
_FILLED = {"positions": "learned", "pooling": "last", "causal": False, "reads_bos": True, "fill_id": 0}
_SIGLIP = {"positions": "learned", "pooling": "end", "causal": False, "reads_bos": False}
_CLEANS = ("whitespace", "lower", "canonicalize")
_POOLERS = {"mean": "mean_pooler", "first": "cls_last_hidden_state_pooler", "pooler": "cls_pooler"}
_PROJECTIONS = {"linear": "linear", "mlp": "mlp", "none": None}


def text_tower(checkpoint: Checkpoint, pipeline: Pipeline, cls: str) -> OpenClipTower:
    """The text tower of a checkpoint with its projection."""
    name, options = options_of(checkpoint, "text_encoder")
    if name.startswith("hf/"):
        return _library_tower(checkpoint, pipeline, cls)
    siglip = options.get("pooling") == "end"
    required = _SIGLIP if siglip else _CAUSAL if options.get("causal") else _FILLED
    if name == "transformer" and not options["causal"] and not siglip and options["fixed_length"] is None:
        required = _CAUSAL
    limits = part_limits(checkpoint, "text_encoder", "transformer", required, cls)
    kind = checkpoint.config.get("text_projection", "linear")
    if kind not in ("linear", "affine", "none"):
        limits.append(f"text_projection is {kind!r}, and {cls} has 'linear', 'affine' and 'none'")
    library = siglip and not isinstance(pipeline.tokenizer, CLIPTokenizer)
    tokenizer = _published(pipeline, limits, cls) if library else None
    if not library:
        limits += clip_tokenizer_limits(checkpoint, cls)
    if limits:
        return OpenClipTower(limits=limits)
    plain, length = required is _CAUSAL and kind == "linear", options["fixed_length"] or options["max_length"]
    prefix = "" if plain else "text."
    rows = TOKENS if tokenizer is None else len(tokenizer.rows)
    texts = weights_of("text_encoder", checkpoint.weights)
    weights = {
        **own_weights(texts, options["depth"], prefix, rows),
        f"{prefix}positional_embedding": texts["positions.weight"],
        **linear(texts, "norm", f"{prefix}ln_final"),
        **_projection(checkpoint, kind, prefix),
    }
    config = {
        "context_length": length, "vocab_size": rows, "width": options["dim"], "heads": options["heads"],
        "layers": options["depth"], "mlp_ratio": options["mlp_ratio"], **variants(options),
    }  # fmt: skip
    config |= {} if options["causal"] else {"no_causal_mask": True}
    config |= {"pool_type": "last"} if siglip else {}
    config |= {"proj_bias": True} if kind == "affine" else {"proj_type": "none"} if kind == "none" else {}
    words = None
    if tokenizer is not None:
        pad = tokenizer.backend.id_to_token(tokenizer.rows.index(options["fill_id"]))
        assert tokenizer.eos is not None
        words = tokenizer.library_tokenizer((), (tokenizer.eos,), length, pad, "input_ids")
        config |= {"hf_tokenizer_name": "tokenizer of this folder", **_cleaning(pipeline)}
    return OpenClipTower({"text_cfg": config, **({} if plain else {"custom_text": True})}, weights, words=words)


def own_weights(texts: dict[str, Tensor], depth: int, prefix: str, rows: int) -> dict[str, Tensor]:
    """Embeddings and blocks of open_clip's own text tower."""
    tensors = {f"{prefix}token_embedding.weight": texts["embedding.weight"][:rows]}
    for number in range(depth):
        tensors |= fused_block(texts, f"blocks.{number}", f"{prefix}transformer.resblocks.{number}")
    return tensors


def clip_tokenizer_limits(checkpoint: Checkpoint, cls: str) -> list[str]:
    """What is other than open_clip's `SimpleTokenizer`, in words."""
    if checkpoint.tokenizer["name"] != "clip":
        return [f"its tokenizer is {checkpoint.tokenizer['name']!r}, and {cls} reads texts by 'clip'"]
    clean = checkpoint.tokenizer["state"].get("clean")
    return [] if clean == "lower" else [f"its tokenizer cleans by {clean!r}, open_clip's by 'lower'"]


def _projection(checkpoint: Checkpoint, kind: str, prefix: str) -> dict[str, Tensor]:
    if kind == "affine":
        return linear(checkpoint.weights, "text_projection", f"{prefix}text_projection")
    weight = checkpoint.weights.get("text_projection.weight")
    return {} if weight is None else {f"{prefix}text_projection": weight.T}


def _published(pipeline: Pipeline, limits: list[str], cls: str) -> HubTokenizer | None:
    """The tokenizer of transformers, or None after a limit was added."""
    tokenizer = pipeline.tokenizer
    if not isinstance(tokenizer, HFTokenizer):
        limits.append(f"its tokenizer is {type(tokenizer).__name__}, and {cls} reads texts by 'clip' or hf/*")
        return None
    if tokenizer.state().get("clean") not in _CLEANS:
        limits.append(
            f"its tokenizer cleans by {tokenizer.state().get('clean')!r}, open_clip's by {', '.join(_CLEANS)}"
        )
        return None
    found = published(tokenizer)
    if found.eos is None:
        limits.append("its tokenizer has no eos of its own")
    return found


def _cleaning(pipeline: Pipeline) -> dict[str, Any]:
    clean = pipeline.tokenizer.state().get("clean")
    return {} if clean == "whitespace" else {"tokenizer_kwargs": {"clean": clean}}


def _library_tower(checkpoint: Checkpoint, pipeline: Pipeline, cls: str) -> OpenClipTower:
    """A text model of transformers; open_clip reads its config by name."""
    name, options = options_of(checkpoint, "text_encoder")
    kind, pooling = checkpoint.config.get("text_projection", "linear"), options["pooling"]
    limits = part_limits(checkpoint, "text_encoder", name, {"dim": None, "bos_id": None, "reads_bos": True}, cls)
    encoder: Any = pipeline.model.text_encoder
    if pooling is None:
        pooling = encoder.pooling.kind
    if pooling not in _POOLERS:
        limits.append(f"text_encoder.pooling is {pooling!r}, and {cls} pools hf/* by {', '.join(_POOLERS)}")
    if kind not in _PROJECTIONS:
        limits.append(f"text_projection is {kind!r}, and {cls} has {', '.join(_PROJECTIONS)} for hf/*")
    tokenizer = _published(pipeline, limits, cls)
    limits += _config_limits(name, options, cls)
    if tokenizer is not None and None in (tokenizer.bos, tokenizer.eos, tokenizer.pad):
        limits.append("its tokenizer lacks a bos, eos or pad of its own")
    if limits or tokenizer is None:
        return OpenClipTower(limits=limits)
    texts = weights_of("text_encoder", checkpoint.weights)
    weights = {f"text.transformer.{key.removeprefix('model.')}": tensor for key, tensor in texts.items()}
    table = next(key for key, part in encoder.model.named_modules() if part is encoder.model.get_input_embeddings())
    known = int(hub.read_config(name.removeprefix("hf/"), None).vocab_size)
    embedding = weights[f"text.transformer.{table}.weight"]
    missing = max(0, known - len(embedding))  # rows that no token has
    weights[f"text.transformer.{table}.weight"] = torch.cat(
        [embedding[:known], embedding.new_zeros(missing, embedding.shape[1])]
    )
    if kind == "linear":
        weights["text.proj.weight"] = checkpoint.weights["text_projection.weight"]
    elif kind == "mlp":
        weights |= {f"text.proj.{part}.weight": checkpoint.weights[f"text_projection.{part}.weight"] for part in "02"}
    around, longest = ((str(tokenizer.bos),), (str(tokenizer.eos),)), checkpoint.max_length
    words = tokenizer.library_tokenizer(*around, longest, str(tokenizer.pad), "input_ids", "attention_mask")
    text = {
        "hf_model_name": name.removeprefix("hf/"), "hf_model_pretrained": False, "context_length": longest,
        "hf_tokenizer_name": name.removeprefix("hf/"), "hf_proj_type": _PROJECTIONS[kind],
        "hf_pooler_type": _POOLERS[pooling], **_cleaning(pipeline),
    }  # fmt: skip
    return OpenClipTower({"text_cfg": text, "custom_text": True}, weights, words=words)


def _config_limits(name: str, options: dict[str, Any], cls: str) -> list[str]:
    """Whether the config of the part can be read by its name, and is that of the part."""
    try:
        known = hub.portable_config(hub.read_config(name.removeprefix("hf/"), None))
    except (OSError, ValueError):
        return [f"{cls} reads the config of a text model by its name on the hub, and {name} is none that is here"]
    ignored = {"vocab_size", "pad_token_id", "bos_token_id", "eos_token_id"}
    ours = {key: value for key, value in options["config"].items() if key not in ignored}
    others = [key for key, value in ours.items() if known.get(key) != value]
    return [f"the config of {name} has another {', '.join(others)}"] if others else []
