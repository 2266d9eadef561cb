"""open_clip's image towers: its own ViT, with or without CoCa's attentional pooler, and any model of timm."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from velm.encoders.timm import import_timm
from velm.sources.state_dict import StateDict, class_token, fused_attention, fused_block, renamed
from velm.sources.tower import Tower, require_known

__all__ = ["activation", "image_tower", "norm_eps"]

_OWN = {
    "image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio", "patch_dropout", "pool_type",
    "act_kwargs", "norm_kwargs", "no_ln_pre", "image_mean", "image_std", "output_tokens", "attentional_pool",
    "attn_pooler_heads", "attn_pooler_queries",
}  # fmt: skip
_TIMM = {
    "image_size", "timm_model_name", "timm_model_pretrained", "timm_pool", "timm_proj", "timm_proj_bias", "timm_drop",
    "timm_drop_path", "patch_dropout", "image_mean", "image_std", "output_tokens",
    "layers", "width", "patch_size", "head_width", "mlp_ratio",  # open_clip reads none of these for a timm tower
}  # fmt: skip
_TO = "model.image_encoder."


def image_tower(vision: Mapping[str, Any], embed_dim: int, quick: bool) -> Tower:
    """The image tower of a `vision_cfg`.

    Args:
        quick: whether the model has QuickGELU; a timm tower never has.

    Raises:
        ValueError: VELM has no such tower.
    """
    if vision.get("timm_model_name"):
        return _timm_tower(vision)
    if isinstance(vision.get("layers"), list):
        raise ValueError("its image tower is OpenAI's modified ResNet, which VELM does not have. Take a ViT.")
    require_known("vision_cfg", vision, _OWN)
    if vision.get("pool_type", "tok") != "tok":
        raise ValueError(f"its image tower pools by {vision['pool_type']!r}; VELM imports class tokens ('tok').")
    vit, pooler = _vit(vision, quick), vision.get("attentional_pool")
    if not pooler:
        return Tower(vit, "linear", partial(_vit_weights, vit))
    if isinstance(pooler, str):
        raise ValueError(
            f"its attentional_pool is {pooler!r}, with a second pooler for the contrastive vector; VELM has one pooler "
            f"whose first query is that vector, as every published CoCa of open_clip."
        )
    config = {
        "name": "attentional", "encoder": vit, "dim": embed_dim, "queries": int(vision.get("attn_pooler_queries", 256)),
        "heads": int(vision.get("attn_pooler_heads", 8)),
    }  # fmt: skip
    return Tower(config, "linear", partial(_attentional_weights, vit))


def activation(options: Mapping[str, Any], quick: bool) -> str:
    """VELM's name of a tower's activation."""
    tanh = (options.get("act_kwargs") or {}).get("approximate") == "tanh"
    return "quick_gelu" if quick else "gelu_tanh" if tanh else "gelu"


def norm_eps(options: Mapping[str, Any]) -> float:
    """What a tower's norms add to the variance."""
    return float((options.get("norm_kwargs") or {}).get("eps", 1e-5))


def _vit(vision: Mapping[str, Any], quick: bool) -> dict[str, Any]:
    width, patch, size = (int(vision.get(*pair)) for pair in (("width", 768), ("patch_size", 16), ("image_size", 224)))
    return {
        "name": "vit", "dim": width, "depth": int(vision.get("layers", 12)),
        "heads": width // int(vision.get("head_width", 64)), "patch_size": patch,
        "mlp_ratio": float(vision.get("mlp_ratio", 4.0)), "positions": "learned", "position_grid": size // patch,
        "pooling": "class", "input_norm": not vision.get("no_ln_pre", False),
        "patch_bias": False, "activation": activation(vision, quick), "norm_eps": norm_eps(vision),
        "patch_dropout": float(vision.get("patch_dropout", 0.0)),
    }  # fmt: skip


def _blocks(vit: Mapping[str, Any], state: StateDict) -> dict[str, Tensor]:
    """The weights of open_clip's ViT up to its last block."""
    weights = {
        "patches.weight": state.take("visual.conv1.weight"),
        **class_token(state.take("visual.class_embedding"), state.take("visual.positional_embedding")),
        **(state.linear("visual.ln_pre", "input_norm") if vit["input_norm"] else {}),
    }
    for block in range(vit["depth"]):
        weights |= fused_block(state, f"visual.transformer.resblocks.{block}", f"blocks.{block}")
    return weights


def _projection(state: StateDict) -> dict[str, Tensor]:
    return {"model.image_projection.weight": state.take("visual.proj").T.contiguous()}


def _vit_weights(vit: Mapping[str, Any], state: StateDict, vocab_size: int) -> dict[str, Tensor]:
    weights = {**_blocks(vit, state), **state.linear("visual.ln_post", "norm")}
    return {**renamed(weights, _TO), **_projection(state)}


def _attentional_weights(vit: Mapping[str, Any], state: StateDict, vocab_size: int) -> dict[str, Tensor]:
    pooler = "visual.attn_pool"
    inner = {**_blocks(vit, state), **state.linear(f"{pooler}.ln_k", "norm")}  # which the pooler applies to its keys
    weights = {
        **renamed(inner, "encoder."),
        "pooler.queries": state.take(f"{pooler}.query"),
        **state.linear(f"{pooler}.ln_q", "pooler.query_norm"),
        **fused_attention(state, f"{pooler}.attn", "pooler.attention"),
        **state.linear("visual.ln_post", "pooler.norm"),
    }
    return {**renamed(weights, _TO), **_projection(state)}


def _timm_tower(vision: Mapping[str, Any]) -> Tower:
    """A model of timm, pooled as timm does it, and open_clip's projection or timm's classifier behind it."""
    require_known("vision_cfg", vision, _TIMM)
    name, pool, projection = vision["timm_model_name"], vision.get("timm_pool", "avg"), _timm_projection(vision)
    if name.startswith("naflex"):
        raise ValueError(f"its image tower timm/{name} takes images of any shape (NaFlex), and VELM's are squares.")
    if pool in ("abs_attn", "rot_attn"):
        raise ValueError(
            f"its timm_pool is {pool!r}, an attention over the cells of a convolutional network, which VELM does not "
            f"have; it imports '', avg, map, token and every other pooling of timm's own."
        )
    for option in ("timm_drop", "patch_dropout"):  # act in training only
        if vision.get(option):
            raise ValueError(
                f"its {option} is {vision[option]}, which VELM has not for a timm tower: set it to 0 in its config."
            )
    config: dict[str, Any] = {"name": f"timm/{name}", "pooling": "own"}
    if pool:
        config["global_pool"] = pool
    if vision.get("timm_drop_path"):
        config["drop_path"] = float(vision["timm_drop_path"])
    return Tower(config, projection, partial(_timm_weights, name, projection, vision.get("timm_proj", "linear")))


def _timm_projection(vision: Mapping[str, Any]) -> str:
    kind, bias = vision.get("timm_proj", "linear"), vision.get("timm_proj_bias", False)
    if kind == "mlp" and bias:
        raise ValueError("its projection of images is an MLP with a bias behind its last layer, which VELM has not.")
    if not kind:
        return "affine"  # timm's classifier
    return {"linear": "affine" if bias else "linear", "mlp": "wide_mlp", "none": "none"}[kind]


def _timm_weights(name: str, projection: str, kind: str | None, state: StateDict, vocab_size: int) -> dict[str, Tensor]:
    to, out = "model.image_projection", {}
    if kind == "mlp":
        out = {
            **state.linear("visual.head.mlp.fc1", f"{to}.0"),
            **state.linear("visual.head.mlp.fc2", f"{to}.2", False),
        }
    elif kind == "linear":
        out = state.linear("visual.head.proj", to, bias=projection == "affine")
    elif not kind:
        out = state.linear(f"visual.trunk.{_classifier(name)}", to)
    return {**renamed(state.below("visual.trunk."), f"{_TO}model."), **out}


def _classifier(name: str) -> str:
    """Name of the last layer of a timm model."""
    config = import_timm().models.get_pretrained_cfg(name)
    classifier = None if config is None else config.classifier
    if not isinstance(classifier, str):
        raise ValueError(f"timm/{name} has no single classifier, which open_clip makes its projection.")
    return classifier
