"""`--format open_clip`: a folder for `open_clip.create_model_and_transforms("local-dir:...")`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from velm.checkpoint import Checkpoint
from velm.exports.hf_clip import log_scale
from velm.exports.open_clip_coca import coca_texts
from velm.exports.open_clip_images import image_tower
from velm.exports.open_clip_texts import text_tower
from velm.exports.requirements import options_of, refuse
from velm.pipeline import Pipeline

__all__ = ["write_open_clip"]


def write_open_clip(checkpoint: Checkpoint, pipeline: Pipeline, folder: Path) -> str:
    """Write `open_clip_config.json`, `open_clip_model.safetensors` and, of a tokenizer of transformers, its files.

    Raises:
        ExportError: open_clip cannot express the model; the message names each reason.
    """
    coca = bool(checkpoint.config.get("decoder"))
    cls = f"open_clip's {'CoCa' if coca else 'CLIP'}"
    lacking = [part for part in ("image_encoder", "text_encoder") if checkpoint.config.get(part) is None]
    if lacking or not pipeline.aligned:
        raise refuse(cls, [f"there is no {part}" for part in lacking] or ["no loss of it aligns images with texts"])
    image = image_tower(checkpoint, pipeline, cls)
    text = (coca_texts if coca else text_tower)(checkpoint, pipeline, cls)
    limits = image.limits + text.limits + _limits(checkpoint, pipeline, cls)
    if limits:
        raise refuse(cls, limits)
    from safetensors.torch import save_file

    weights = {**image.weights, **text.weights, "logit_scale": log_scale(checkpoint)}
    model: dict[str, Any] = {
        "embed_dim": int(checkpoint.config["embed_dim"]), "quick_gelu": "quick_gelu" in _activations(checkpoint),
        "vision_cfg": image.config | ({"output_tokens": True} if coca else {}), **text.config,
    }  # fmt: skip
    if checkpoint.logit_bias is not None:
        weights["logit_bias"] = torch.tensor(checkpoint.logit_bias)
        model["init_logit_bias"] = checkpoint.logit_bias
    save_file(
        {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in weights.items()},
        folder / "open_clip_model.safetensors",
        metadata={"format": "pt"},
    )
    config = {"model_cfg": model, "preprocess_cfg": _preprocess(pipeline)}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    if text.words is not None:
        text.words.save_pretrained(folder)
    return cls


def _limits(checkpoint: Checkpoint, pipeline: Pipeline, cls: str) -> list[str]:
    """What open_clip cannot express of the whole, in words."""
    limits = []
    kinds = _activations(checkpoint)
    if "quick_gelu" in kinds and len(set(kinds)) > 1:
        limits.append(f"its activations are {' and '.join(kinds)}; quick_gelu is of both")
    if checkpoint.logit_scale is None:
        limits.append("no loss of it learned a scale of the cosines")
    transform = pipeline.transform
    if transform.resize not in ("shortest", "squash", "longest"):
        limits.append(f"data.resize is {transform.resize!r}, and open_clip has 'shortest', 'squash' and 'longest'")
    if transform.resize == "shortest" and transform.crop_rounding != "even":
        limits.append("data.crop_rounding is 'down'; open_clip rounds to 'even'")
    if transform.interpolation == "lanczos":
        limits.append("data.interpolation is 'lanczos', and open_clip has bicubic and bilinear")
    return limits


def _activations(checkpoint: Checkpoint) -> list[str]:
    """Of the towers that are open_clip's own."""
    found = [options_of(checkpoint, part) for part in ("image_encoder", "text_encoder") if checkpoint.config.get(part)]
    parts = [options.get("encoder", options) if name == "attentional" else options for name, options in found]
    if checkpoint.config.get("decoder"):
        parts.append(options_of(checkpoint, "decoder")[1])
    return [options["activation"] for options in parts if "activation" in options]


def _preprocess(pipeline: Pipeline) -> dict[str, Any]:
    """`preprocess_cfg`."""
    encoder, transform = pipeline.model.image_encoder, pipeline.transform
    assert encoder is not None
    return {
        "size": [transform.image_size] * 2, "mode": "RGB", "mean": list(encoder.image_mean),
        "std": list(encoder.image_std), "interpolation": transform.interpolation, "resize_mode": transform.resize,
        "fill_color": 0,
    }  # fmt: skip
