"""`VisionTextDualEncoderModel` of transformers: towers of any kind; the inverse of `velm.sources.hf_dual`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from velm.checkpoint import Checkpoint, weights_of
from velm.exports.hf_clip import log_scale, vision_config
from velm.exports.hf_files import library_config, save_library_model, save_processor
from velm.exports.hf_images import image_processor, transform_limits
from velm.exports.hf_tokenizer import HubTokenizer, require_tokenizer
from velm.exports.layouts import clip_image, linear
from velm.exports.requirements import LINEAR, options_of, part_limits, projection_limits
from velm.pipeline import Pipeline

__all__ = ["write_dual"]

CLASS = "VisionTextDualEncoderModel"
_VIT = {
    "positions": "learned", "pooling": "class", "input_norm": True, "output_norm": True,
}  # fmt: skip
_IMAGE = {"pooling": "pooler", "dim": None, "feature_layer": None}
_TEXT = {"pooling": "pooler", "dim": None, "reads_bos": True, "bos_id": None}


def write_dual(checkpoint: Checkpoint, pipeline: Pipeline, folder: Path) -> str:
    """Write the model with its processor.

    Raises:
        ExportError: the class cannot express the model; the message names each reason.
    """
    tokenizer = _require(checkpoint, pipeline)
    from transformers import AutoConfig, VisionTextDualEncoderConfig, VisionTextDualEncoderModel

    (kind, image), (text_kind, text) = (options_of(checkpoint, part) for part in ("image_encoder", "text_encoder"))
    images, texts = (weights_of(part, checkpoint.weights) for part in ("image_encoder", "text_encoder"))
    encoder: Any = pipeline.model.text_encoder
    rows = encoder.model.get_input_embeddings().num_embeddings
    if kind == "vit":
        vision: Any = AutoConfig.for_model("clip_vision_model", **vision_config(image, checkpoint))
        tower = clip_image(images, "vision_model.", image["depth"])
    else:
        vision = library_config(kind, image)
        tower = {f"vision_model.{name.removeprefix('model.')}": tensor for name, tensor in images.items()}
    config = VisionTextDualEncoderConfig.from_vision_text_configs(
        vision, library_config(text_kind, text, vocab_size=rows), projection_dim=int(checkpoint.config["embed_dim"])
    )
    scale = log_scale(checkpoint)
    config.logit_scale_init_value = float(scale)
    weights = {
        **tower,
        **{f"text_model.{name.removeprefix('model.')}": tensor for name, tensor in texts.items()},
        **linear(checkpoint.weights, "image_projection", "visual_projection"),
        **linear(checkpoint.weights, "text_projection", "text_projection"),
        "logit_scale": scale,
    }
    save_library_model(VisionTextDualEncoderModel, config, weights, folder)
    assert tokenizer.bos is not None
    assert tokenizer.eos is not None
    assert tokenizer.pad is not None
    around, inputs = ((tokenizer.bos,), (tokenizer.eos,)), ("input_ids", "attention_mask")
    words = tokenizer.library_tokenizer(*around, checkpoint.max_length, tokenizer.pad, *inputs)
    save_processor("VisionTextDualEncoderProcessor", image_processor(pipeline, "CLIPImageProcessor"), words, folder)
    return CLASS


def _require(checkpoint: Checkpoint, pipeline: Pipeline) -> HubTokenizer:
    """The tokenizer, if the class can express the model."""
    kind, text = options_of(checkpoint, "image_encoder")[0], options_of(checkpoint, "text_encoder")[0]
    limits = []
    if kind != "vit" and not kind.startswith("hf/"):
        limits.append(f"the image_encoder is {kind!r}, and that of {CLASS} is a vit or hf/*")
    else:
        limits += part_limits(checkpoint, "image_encoder", kind, _VIT if kind == "vit" else _IMAGE, CLASS)
    limits += part_limits(checkpoint, "text_encoder", text, _TEXT, CLASS)
    limits += projection_limits(checkpoint, LINEAR, CLASS)
    if checkpoint.logit_bias is not None:
        limits.append(f"its loss learned a bias of the cosines (sigmoid), and {CLASS} has none")
    limits += transform_limits(pipeline.transform)
    return require_tokenizer(pipeline.tokenizer, CLASS, limits, _tokenizer_limits)


def _tokenizer_limits(tokenizer: HubTokenizer) -> list[str]:
    limits = []
    if None in (tokenizer.bos, tokenizer.eos, tokenizer.pad):
        limits.append("its tokenizer lacks a bos, eos or pad of its own")
    if tokenizer.rows != list(range(len(tokenizer.rows))):
        limits.append("its tokenizer is not that of the text tower (hf/*)")
    return limits
