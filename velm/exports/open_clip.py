"""`--format open_clip`: a folder for `open_clip.create_model_and_transforms("local-dir:...")`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from velm.checkpoint import Checkpoint, weights_of
from velm.data.text.clip import CLIPTokenizer
from velm.exports.hf_clip import log_scale, refuse
from velm.exports.layouts import linear, rows_of_grid
from velm.exports.requirements import LINEAR, options_of, part_limits, projection_limits
from velm.pipeline import Pipeline

__all__ = ["write_open_clip"]

CLASS = "open_clip's CLIP"
TOKENS = 49_408
"""Of open_clip's tokenizer, whose largest id is eos."""
_IMAGE = {"positions": "learned", "pooling": "class", "output_norm": True, "patch_bias": False}
_TEXT = {"positions": "learned", "pooling": "last", "causal": True, "fixed_length": None, "reads_bos": True}


def write_open_clip(checkpoint: Checkpoint, pipeline: Pipeline, folder: Path) -> str:
    """Write `open_clip_config.json` and `open_clip_model.safetensors`.

    Raises:
        ExportError: open_clip's CLIP cannot express the model; the message names each reason.
    """
    _require(checkpoint, pipeline)
    from safetensors.torch import save_file

    image, text = options_of(checkpoint, "image_encoder")[1], options_of(checkpoint, "text_encoder")[1]
    images, texts = (weights_of(part, checkpoint.weights) for part in ("image_encoder", "text_encoder"))
    token = images["class_token"]
    weights = {
        "visual.class_embedding": token,
        "visual.positional_embedding": torch.cat(
            [torch.zeros_like(token)[None], rows_of_grid(images["positions.weight"])]
        ),
        **linear(images, "patches", "visual.conv1"),
        **(linear(images, "input_norm", "visual.ln_pre") if image["input_norm"] else {}),
        **_blocks(images, "visual.transformer", image["depth"]),
        **linear(images, "norm", "visual.ln_post"),
        "visual.proj": checkpoint.weights["image_projection.weight"].T,
        "token_embedding.weight": texts["embedding.weight"][:TOKENS],
        "positional_embedding": texts["positions.weight"],
        **_blocks(texts, "transformer", text["depth"]),
        **linear(texts, "norm", "ln_final"),
        "text_projection": checkpoint.weights["text_projection.weight"].T,
        "logit_scale": log_scale(checkpoint),
    }
    if checkpoint.logit_bias is not None:
        weights["logit_bias"] = torch.tensor(checkpoint.logit_bias)
    save_file(
        {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in weights.items()},
        folder / "open_clip_model.safetensors",
        metadata={"format": "pt"},
    )
    config = {"model_cfg": _model(checkpoint, image, text), "preprocess_cfg": _preprocess(pipeline)}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    return CLASS


def _require(checkpoint: Checkpoint, pipeline: Pipeline) -> None:
    """Raise ExportError unless open_clip's CLIP can express the model."""
    limits = part_limits(checkpoint, "image_encoder", "vit", _IMAGE, CLASS)
    limits += part_limits(checkpoint, "text_encoder", "transformer", _TEXT, CLASS)
    if checkpoint.config.get("decoder"):
        limits.append(f"it has a decoder, and {CLASS} has none")
    if not limits:
        image, text = options_of(checkpoint, "image_encoder")[1], options_of(checkpoint, "text_encoder")[1]
        quick = [part["activation"] == "quick_gelu" for part in (image, text)]
        if quick[0] != quick[1]:
            limits.append(f"its activations are {image['activation']} and {text['activation']}; quick_gelu is of both")
    limits += projection_limits(checkpoint, LINEAR, CLASS)
    tokenizer = pipeline.tokenizer
    if not isinstance(tokenizer, CLIPTokenizer) and checkpoint.tokenizer["name"] != "clip":
        limits.append(f"its tokenizer is {checkpoint.tokenizer['name']!r}, and {CLASS} reads texts by 'clip'")
    elif checkpoint.tokenizer["state"].get("clean") != "lower":
        limits.append(f"its tokenizer cleans by {checkpoint.tokenizer['state'].get('clean')!r}, open_clip's by 'lower'")
    transform = pipeline.transform
    if transform.resize not in ("shortest", "squash", "longest"):
        limits.append(f"data.resize is {transform.resize!r}, and open_clip has 'shortest', 'squash' and 'longest'")
    if transform.resize == "shortest" and transform.crop_rounding != "even":
        limits.append("data.crop_rounding is 'down'; open_clip rounds to 'even'")
    if transform.interpolation == "lanczos":
        limits.append("data.interpolation is 'lanczos', and open_clip has bicubic and bilinear")
    if limits:
        raise refuse(CLASS, limits)


def _blocks(weights: dict[str, Tensor], to: str, depth: int) -> dict[str, Tensor]:
    """`TransformerBlock`s as those of open_clip, with queries, keys and values in one matrix."""
    tensors: dict[str, Tensor] = {}
    for number in range(depth):
        name, block = f"blocks.{number}", f"{to}.resblocks.{number}"
        for kind in ("weight", "bias"):
            parts = [weights[f"{name}.attention.{part}.{kind}"] for part in ("query", "key_value")]
            tensors[f"{block}.attn.in_proj_{kind}"] = torch.cat(parts)
        for ours, theirs in (
            ("attention_norm", "ln_1"), ("attention.output", "attn.out_proj"), ("mlp_norm", "ln_2"),
            ("mlp.0", "mlp.c_fc"), ("mlp.3", "mlp.c_proj"),
        ):  # fmt: skip
            tensors |= linear(weights, f"{name}.{ours}", f"{block}.{theirs}")
    return tensors


def _model(checkpoint: Checkpoint, image: dict[str, Any], text: dict[str, Any]) -> dict[str, Any]:
    """`model_cfg`."""
    model: dict[str, Any] = {
        "embed_dim": int(checkpoint.config["embed_dim"]),
        "quick_gelu": image["activation"] == "quick_gelu",
        "vision_cfg": {
            "image_size": image["position_grid"] * image["patch_size"], "layers": image["depth"], "width": image["dim"],
            "patch_size": image["patch_size"], "head_width": image["dim"] // image["heads"],
            "mlp_ratio": image["mlp_ratio"], "no_ln_pre": not image["input_norm"], **_variants(image),
        },
        "text_cfg": {
            "context_length": text["max_length"], "vocab_size": TOKENS, "width": text["dim"], "heads": text["heads"],
            "layers": text["depth"], "mlp_ratio": text["mlp_ratio"], **_variants(text),
        },
    }  # fmt: skip
    if checkpoint.logit_bias is not None:
        model["init_logit_bias"] = checkpoint.logit_bias
    return model


def _variants(options: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if options["activation"] == "gelu_tanh":
        found["act_kwargs"] = {"approximate": "tanh"}
    if options["norm_eps"] != 1e-5:
        found["norm_kwargs"] = {"eps": options["norm_eps"]}
    return found


def _preprocess(pipeline: Pipeline) -> dict[str, Any]:
    """`preprocess_cfg`."""
    encoder, transform = pipeline.model.image_encoder, pipeline.transform
    assert encoder is not None
    return {
        "size": [transform.image_size] * 2, "mode": "RGB", "mean": list(encoder.image_mean),
        "std": list(encoder.image_std), "interpolation": transform.interpolation, "resize_mode": transform.resize,
        "fill_color": 0,
    }  # fmt: skip
