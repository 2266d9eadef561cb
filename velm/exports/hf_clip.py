"""`CLIPModel` and `SiglipModel` of transformers from VELM's own towers; the inverse of `velm.sources.hf_clip`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from velm.checkpoint import Checkpoint, weights_of
from velm.exports.hf_files import save_library_model, save_processor
from velm.exports.hf_images import image_processor, transform_limits
from velm.exports.hf_tokenizer import HubTokenizer, require_tokenizer
from velm.exports.layouts import clip_image, fused_attention, linear, siglip_image, text_tower
from velm.exports.requirements import LINEAR, grid_limits, options_of, part_limits, projection_limits, refuse
from velm.pipeline import Pipeline

__all__ = ["log_scale", "vision_config", "write_clip", "write_siglip"]

ACTIVATIONS = {"gelu": "gelu", "quick_gelu": "quick_gelu", "gelu_tanh": "gelu_pytorch_tanh"}
_CLIP_IMAGE = {
    "positions": "learned", "pooling": "class", "input_norm": True, "output_norm": True,
}  # fmt: skip
_SIGLIP_IMAGE = {
    "positions": "learned", "pooling": "map", "input_norm": False, "output_norm": True,
}  # fmt: skip
_CLIP_TEXT = {"positions": "learned", "pooling": "last", "causal": True, "fixed_length": None, "reads_bos": True}
_SIGLIP_TEXT = {"positions": "learned", "pooling": "end", "causal": False, "reads_bos": False}


def write_clip(checkpoint: Checkpoint, pipeline: Pipeline, folder: Path) -> str:
    """Write a `CLIPModel` with its processor.

    Raises:
        ExportError: it cannot express the model; the message names each reason.
    """
    tokenizer = _require(checkpoint, pipeline, "CLIPModel", _CLIP_IMAGE, _CLIP_TEXT, LINEAR)
    from transformers import CLIPConfig, CLIPModel

    if tokenizer.bos is None or tokenizer.eos is None:
        raise refuse("CLIPModel", ["its tokenizer has no bos or no eos of its own, which VELM added"])
    if tokenizer.id_of(tokenizer.eos) == 2:
        raise refuse(
            "CLIPModel", ["the id of its eos is 2, by which CLIPModel knows old configs that pool another token"]
        )
    pad, size, scale = tokenizer.pad or tokenizer.eos, int(checkpoint.config["embed_dim"]), log_scale(checkpoint)
    image, text = options_of(checkpoint, "image_encoder")[1], options_of(checkpoint, "text_encoder")[1]
    ids = {f"{name}_token_id": tokenizer.id_of(t) for name, t in (("bos", tokenizer.bos), ("eos", tokenizer.eos))}
    config = CLIPConfig(
        text_config={
            **_blocks(text, checkpoint, "text_encoder"), **ids, "vocab_size": len(tokenizer.rows),
            "max_position_embeddings": text["max_length"], "projection_dim": size,
            "pad_token_id": tokenizer.id_of(pad),
        },
        vision_config=vision_config(image, checkpoint) | {"projection_dim": size},
        projection_dim=size,
        logit_scale_init_value=float(scale),
    )  # fmt: skip
    images, texts = (weights_of(part, checkpoint.weights) for part in ("image_encoder", "text_encoder"))
    weights = {
        **clip_image(images, "vision_model.", image["depth"]),
        **text_tower(texts, text["depth"], tokenizer.rows),
        **linear(checkpoint.weights, "image_projection", "visual_projection"),
        **linear(checkpoint.weights, "text_projection", "text_projection"),
        "logit_scale": scale,
    }
    save_library_model(CLIPModel, config, weights, folder)
    words = tokenizer.library_tokenizer(
        (tokenizer.bos,), (tokenizer.eos,), text["max_length"], pad, "input_ids", "attention_mask"
    )
    save_processor("CLIPProcessor", image_processor(pipeline, "CLIPImageProcessor"), words, folder)
    return "CLIPModel"


def write_siglip(checkpoint: Checkpoint, pipeline: Pipeline, folder: Path) -> str:
    """Write a `SiglipModel` with its processor.

    Raises:
        ExportError: it cannot express the model; the message names each reason.
    """
    projections = {"image_projection": "none", "text_projection": "affine"}
    tokenizer = _require(checkpoint, pipeline, "SiglipModel", _SIGLIP_IMAGE, _SIGLIP_TEXT, projections)
    from transformers import SiglipConfig, SiglipModel

    image, text = options_of(checkpoint, "image_encoder")[1], options_of(checkpoint, "text_encoder")[1]
    fill = pipeline.tokenizer.pad_id if text["fill_id"] is None else text["fill_id"]
    if tokenizer.eos is None or fill not in tokenizer.rows:
        raise refuse("SiglipModel", ["its tokenizer has no eos or no padding of its own, which VELM added"])
    pad = tokenizer.backend.id_to_token(tokenizer.rows.index(fill))
    config = SiglipConfig(
        text_config={
            **_blocks(text, checkpoint, "text_encoder"), "vocab_size": len(tokenizer.rows),
            "max_position_embeddings": text["fixed_length"], "projection_size": int(checkpoint.config["embed_dim"]),
            "pad_token_id": tokenizer.id_of(pad), "bos_token_id": None, "eos_token_id": tokenizer.id_of(tokenizer.eos),
        },
        vision_config=vision_config(image, checkpoint),
    )  # fmt: skip
    images, texts = (weights_of(part, checkpoint.weights) for part in ("image_encoder", "text_encoder"))
    weights = {
        **siglip_image(images, "vision_model.", image["depth"]),
        **_map_head(images),
        **text_tower(texts, text["depth"], tokenizer.rows),
        **linear(checkpoint.weights, "text_projection", "text_model.head"),
        "logit_scale": log_scale(checkpoint).reshape(1),
        "logit_bias": torch.tensor([checkpoint.logit_bias]),
    }
    save_library_model(SiglipModel, config, weights, folder)
    words = tokenizer.library_tokenizer((), (tokenizer.eos,), text["fixed_length"], pad, "input_ids")  # reads padding
    save_processor("SiglipProcessor", image_processor(pipeline, "SiglipImageProcessor"), words, folder)
    return "SiglipModel"


def _require(
    checkpoint: Checkpoint,
    pipeline: Pipeline,
    cls: str,
    image: dict[str, Any],
    text: dict[str, Any],
    projections: dict[str, str],
) -> HubTokenizer:
    """The tokenizer, if the class can express the model."""
    limits = part_limits(checkpoint, "image_encoder", "vit", image, cls)
    limits += part_limits(checkpoint, "text_encoder", "transformer", text, cls)
    limits += grid_limits(checkpoint) if not limits else []
    limits += projection_limits(checkpoint, projections, cls)
    if (checkpoint.logit_bias is None) != (cls == "CLIPModel"):
        has = "learned a bias of the cosines (sigmoid)" if cls == "CLIPModel" else "learned no bias (sigmoid)"
        limits.append(f"its loss {has}, and {cls} has {'none' if cls == 'CLIPModel' else 'one'}")
    limits += transform_limits(pipeline.transform)
    return require_tokenizer(pipeline.tokenizer, cls, limits)


def log_scale(checkpoint: Checkpoint) -> Tensor:
    """The logarithm of the scale, bit for bit that of the loss where this is the scale that the pipeline uses."""
    assert checkpoint.logit_scale is not None
    for name, tensor in checkpoint.loss_weights.items():
        if name.endswith(".log_scale") and math.isclose(tensor.exp().item(), checkpoint.logit_scale, rel_tol=1e-6):
            return tensor.reshape(())
    return torch.tensor(math.log(checkpoint.logit_scale))


def _blocks(options: dict[str, Any], checkpoint: Checkpoint, part: str) -> dict[str, Any]:
    return {
        "hidden_size": options["dim"], "num_hidden_layers": options["depth"], "num_attention_heads": options["heads"],
        "intermediate_size": len(checkpoint.weights[f"{part}.blocks.0.mlp.0.weight"]),
        "hidden_act": ACTIVATIONS[options["activation"]], "layer_norm_eps": options["norm_eps"],
    }  # fmt: skip


def vision_config(options: dict[str, Any], checkpoint: Checkpoint) -> dict[str, Any]:
    """`vision_config` of the image encoder."""
    size = {"image_size": checkpoint.transform["image_size"], "patch_size": options["patch_size"]}
    return _blocks(options, checkpoint, "image_encoder") | size


def _map_head(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """`MAPHead` as the pooling head of SigLIP."""
    head = "vision_model.head"
    return {
        f"{head}.probe": weights["pooling.query"].reshape(1, 1, -1),
        **fused_attention(weights, "pooling.attention", f"{head}.attention"),
        **linear(weights, "pooling.norm", f"{head}.layernorm"),
        **linear(weights, "pooling.mlp.0", f"{head}.mlp.fc1"),
        **linear(weights, "pooling.mlp.3", f"{head}.mlp.fc2"),
    }
