"""open_clip's image towers: its own ViT, that with CoCa's attentional pooler, and models of timm."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from velm.checkpoint import Checkpoint, weights_of
from velm.encoders.vit import ViTEncoder
from velm.errors import MissingPackageError
from velm.exports.layouts import class_positions, fused_attention, fused_block, linear
from velm.exports.requirements import options_of, part_limits, projection_limits
from velm.pipeline import Pipeline
from velm.registry import split_config

__all__ = ["OpenClipTower", "image_tower", "variants"]

_VIT = {"positions": "learned", "pooling": "class", "output_norm": True}
_POOLS: dict[str, Any] = {"mean": "avg", "class": "token", "max": "max"}
_PROJECTIONS = {
    "linear": ("linear", False),
    "affine": ("linear", True),
    "wide_mlp": ("mlp", False),
    "none": ("none", False),
}


@dataclass(frozen=True)
class OpenClipTower:
    """A part of a model of open_clip.

    Attributes:
        config: `vision_cfg`; of a text tower, `text_cfg` and what else belongs into `model_cfg`.
        weights: by their names in the model.
        limits: what open_clip cannot express, in words; the rest is empty then.
        words: a tokenizer of transformers whose files belong into the folder.
    """

    config: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)
    limits: list[str] = field(default_factory=list)
    words: Any = None


def image_tower(checkpoint: Checkpoint, pipeline: Pipeline, cls: str) -> OpenClipTower:
    """The image tower of a checkpoint with its projection.

    Raises:
        MissingPackageError: it is one of timm, and open_clip is not installed.
    """
    name, options = options_of(checkpoint, "image_encoder")
    weights = weights_of("image_encoder", checkpoint.weights)
    if name.startswith("timm/"):
        return _timm_tower(checkpoint, pipeline, cls)
    limits = projection_limits(checkpoint, {"image_projection": "linear"}, cls, scaled=False)
    projection = {} if limits else {"visual.proj": checkpoint.weights["image_projection.weight"].T}
    if name == "attentional":
        inner, of_encoder = split_config(options["encoder"])
        if inner != "vit":
            return OpenClipTower(limits=[*limits, f"image_encoder.encoder is {inner!r}, and that of {cls} is a vit"])
        vit = _defaults() | of_encoder
        limits += [f"image_encoder.encoder.{key} is {vit[key]!r}, and {cls} has {value!r}"
                   for key, value in _VIT.items() if vit[key] != value]  # fmt: skip
        if options["dim"] != checkpoint.config["embed_dim"]:
            limits.append(f"image_encoder.dim is {options['dim']}, and embed_dim {checkpoint.config['embed_dim']}")
        if limits:
            return OpenClipTower(limits=limits)
        config = _vit_config(vit) | {
            "attentional_pool": True, "attn_pooler_queries": options["queries"], "attn_pooler_heads": options["heads"],
        }  # fmt: skip
        return OpenClipTower(config, projection | _vit_weights(vit, weights, "encoder.") | _pooler_weights(weights))
    limits = part_limits(checkpoint, "image_encoder", "vit", _VIT, cls) + limits
    if limits:
        return OpenClipTower(limits=limits)
    last = linear(weights, "norm", "visual.ln_post")
    return OpenClipTower(_vit_config(options), projection | _vit_weights(options, weights, "") | last)


def variants(options: dict[str, Any]) -> dict[str, Any]:
    """Activation and norm, where they are not the defaults of `vision_cfg` and `text_cfg`."""
    found: dict[str, Any] = {}
    if options["activation"] == "gelu_tanh":
        found["act_kwargs"] = {"approximate": "tanh"}
    if options.get("norm_eps", 1e-5) != 1e-5:
        found["norm_kwargs"] = {"eps": options["norm_eps"]}
    return found


def _defaults() -> dict[str, Any]:
    return {key: each.default for key, each in inspect.signature(ViTEncoder).parameters.items()}


def _vit_config(vit: dict[str, Any]) -> dict[str, Any]:
    return {
        "image_size": vit["position_grid"] * vit["patch_size"], "layers": vit["depth"], "width": vit["dim"],
        "patch_size": vit["patch_size"], "head_width": vit["dim"] // vit["heads"], "mlp_ratio": vit["mlp_ratio"],
        "no_ln_pre": not vit["input_norm"], **variants(vit),
    }  # fmt: skip


def _vit_weights(vit: dict[str, Any], weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Up to the last block."""
    tensors = {
        "visual.class_embedding": weights[f"{prefix}class_token"],
        "visual.positional_embedding": class_positions(weights, prefix),
        "visual.conv1.weight": weights[f"{prefix}patches.weight"],
        **(linear(weights, f"{prefix}input_norm", "visual.ln_pre") if vit["input_norm"] else {}),
    }
    for number in range(vit["depth"]):
        tensors |= fused_block(weights, f"{prefix}blocks.{number}", f"visual.transformer.resblocks.{number}")
    return tensors


def _pooler_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    pooler = "visual.attn_pool"
    return {
        f"{pooler}.query": weights["pooler.queries"],
        **linear(weights, "encoder.norm", f"{pooler}.ln_k"),
        **linear(weights, "pooler.query_norm", f"{pooler}.ln_q"),
        **fused_attention(weights, "pooler.attention", f"{pooler}.attn"),
        **linear(weights, "pooler.norm", "visual.ln_post"),
    }


def _timm_tower(checkpoint: Checkpoint, pipeline: Pipeline, cls: str) -> OpenClipTower:
    """A model of timm, if open_clip's pools it to the same numbers."""
    name, options = options_of(checkpoint, "image_encoder")
    kind = checkpoint.config.get("image_projection", "linear")
    limits = part_limits(checkpoint, "image_encoder", name, {"dim": None}, cls)
    pooling = options["pooling"]
    if pooling != "own" and pooling not in _POOLS:
        limits.append(f"image_encoder.pooling is {pooling!r}, and {cls} pools timm/* by own, mean, max or class")
    if kind not in _PROJECTIONS:
        limits.append(f"image_projection is {kind!r}, and {cls} has {', '.join(_PROJECTIONS)} for timm/*")
    if limits:
        return OpenClipTower(limits=limits)
    pool = _POOLS.get(pooling, options["global_pool"] or "")
    projection, bias = _PROJECTIONS[kind]
    trunk = weights_of("image_encoder", checkpoint.weights)
    weights = {f"trunk.{key.removeprefix('model.')}": tensor for key, tensor in trunk.items()}
    joint = weights_of("image_projection", checkpoint.weights)
    if kind == "wide_mlp":
        weights |= {**linear(joint, "0", "head.mlp.fc1"), **linear(joint, "2", "head.mlp.fc2")}
    weights |= {f"head.proj.{part}": tensor for part, tensor in joint.items()} if projection == "linear" else {}
    size, model = checkpoint.transform["image_size"], name.removeprefix("timm/")
    config = {"timm_model_name": model, "timm_model_pretrained": False, "timm_pool": pool, "timm_proj": projection,
              "timm_proj_bias": bias, "image_size": size}  # fmt: skip
    if options["drop_path"]:
        config["timm_drop_path"] = options["drop_path"]
    difference = _timm_difference(config, weights, pipeline)
    if difference is not None:
        return OpenClipTower(limits=[f"{name} with pooling {pooling!r}: {difference}"])
    return OpenClipTower(config, {f"visual.{key}": tensor for key, tensor in weights.items()})


def _timm_difference(config: dict[str, Any], weights: dict[str, Tensor], pipeline: Pipeline) -> str | None:
    """Where open_clip's tower of a `vision_cfg` differs from the pipeline's, in words; None: nowhere."""
    try:
        from open_clip.timm_model import TimmModel
    except ImportError as error:
        raise MissingPackageError("The export is read by open_clip: pip install 'velm[open_clip]'.") from error
    embed_dim, size = pipeline.model.embed_dim, config["image_size"]
    tower = TimmModel(
        config["timm_model_name"], embed_dim, pool=config["timm_pool"], proj=config["timm_proj"],
        proj_bias=config["timm_proj_bias"],
    )  # fmt: skip
    try:
        tower.load_state_dict(weights, strict=True)
        images = torch.randint(
            0, 256, (2, 3, size, size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
        )
        encoder = pipeline.model.image_encoder
        assert encoder is not None
        with torch.inference_mode():
            expected = pipeline.embed_image(pipeline.model.encode_image(images.to(pipeline.device)))
            mean, std = (torch.tensor(each)[:, None, None] for each in (encoder.image_mean, encoder.image_std))
            found = torch.nn.functional.normalize(tower.eval()((images / 255 - mean) / std), dim=-1)
    except (RuntimeError, AssertionError) as error:  # of names and shapes; of an image size
        lines = str(error).strip().splitlines() or ["an assertion failed"]
        return f"open_clip's tower does not take its weights or images of {size} pixels ({lines[-1].strip()})"
    if not torch.allclose(found, expected, atol=1e-5, rtol=0):
        return f"open_clip's timm_pool {config['timm_pool']!r} gives other numbers"
    return None
