"""`LlavaForConditionalGeneration` of transformers from a `vit` and an `llm/*`; the inverse of `velm.sources.hf_vlm`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from velm.checkpoint import Checkpoint, weights_of
from velm.errors import ExportError
from velm.exports.hf_clip import refuse, save_library_model, vision_config
from velm.exports.hf_images import image_processor, transform_limits
from velm.exports.hf_tokenizer import HubTokenizer, hub_tokenizer
from velm.exports.layouts import clip_image, linear, siglip_image
from velm.exports.requirements import options_of, part_limits
from velm.pipeline import Pipeline
from velm.prompt import CHAT

__all__ = ["write_llava"]

CLASS = "LlavaForConditionalGeneration"
IMAGE = "<image>"
_CLIP = {"positions": "learned", "input_norm": True, "output_norm": False, "patch_bias": False}
_SIGLIP = {"positions": "learned", "input_norm": False, "output_norm": False, "patch_bias": True}
_DECODER = {"projector": "mlp", "shuffle": 1, "prefix_norm": None, "prefix_attention": "causal"}


def write_llava(checkpoint: Checkpoint, pipeline: Pipeline, folder: Path) -> str:
    """Write the model with its processor, whose chat template is the decoder's template.

    Raises:
        ExportError: the class cannot express the model; the message names each reason.
    """
    tokenizer = _require(checkpoint, pipeline)
    from transformers import AutoConfig, GenerationConfig, LlavaConfig, LlavaForConditionalGeneration

    name, decoder = options_of(checkpoint, "decoder")
    vision = options_of(checkpoint, "image_encoder")[1]
    language = {key: value for key, value in decoder["config"].items() if key != "model_type"}
    weights = weights_of("decoder", checkpoint.weights)
    image_id, rows = _image_token(tokenizer, len(weights["output_projection.weight"]))
    weights = {key: _with_rows(key, tensor, rows, checkpoint, pipeline) for key, tensor in weights.items()}
    ids = {"eos_token_id": pipeline.tokenizer.eos_id, "pad_token_id": tokenizer.id_of(_pad(tokenizer))}
    text = AutoConfig.for_model(_type_of(name, decoder), **{**language, **ids, "vocab_size": rows})
    kind = "clip_vision_model" if vision["pooling"] == "class" else "siglip_vision_model"
    tower = vision_config(vision, checkpoint) | ({} if vision["pooling"] == "class" else {"vision_use_head": False})
    config = LlavaConfig(
        vision_config=AutoConfig.for_model(kind, **tower),
        text_config=text,
        image_token_index=image_id,
        image_seq_length=_positions(vision),
        vision_feature_layer=-1,
        vision_feature_select_strategy=_strategy(vision),
        tie_word_embeddings=bool(language.get("tie_word_embeddings", getattr(text, "tie_word_embeddings", False))),
    )
    state = _weights(checkpoint, weights, vision)
    save_library_model(LlavaForConditionalGeneration, config, state, folder)
    suppress = sorted({*pipeline.captioner._token_ids()["suppress"], *range(checkpoint.config["vocab_size"], rows)})
    GenerationConfig(**ids, suppress_tokens=suppress or None).save_pretrained(folder)
    _save_processor(pipeline, tokenizer, vision, folder)
    return CLASS


def _require(checkpoint: Checkpoint, pipeline: Pipeline) -> HubTokenizer:
    """The tokenizer, if the class can express the model."""
    limits = part_limits(checkpoint, "image_encoder", "vit", {}, CLASS)
    if not limits:
        pools = options_of(checkpoint, "image_encoder")[1]["pooling"]
        limits = part_limits(checkpoint, "image_encoder", "vit", _CLIP if pools == "class" else _SIGLIP, CLASS)
    name = options_of(checkpoint, "decoder")[0]
    limits += part_limits(checkpoint, "decoder", name, _DECODER, CLASS)
    template = checkpoint.config["decoder"].get("template")
    if template is None or template == CHAT:
        limits.append(f"decoder.template is {template!r}, and {CLASS} needs it as a text, 'USER: {{image}}\\n{{text}}'")
    if list(checkpoint.config.get("memory") or ["image"]) != ["image"]:
        limits.append(f"memory is {checkpoint.config['memory']}, and {CLASS} reads images")
    if "decoder.output_projection.bias" in checkpoint.weights:
        limits.append("its output projection has a bias")
    limits += transform_limits(pipeline.transform)
    try:
        tokenizer = hub_tokenizer(pipeline.tokenizer)
        if tokenizer.eos is None or tokenizer.rows != list(range(len(tokenizer.rows))):
            limits.append("its tokenizer has no eos of its own, or is not that of a language model (hf/*)")
    except ExportError as error:
        limits.append(str(error))
    if limits:
        raise refuse(CLASS, limits)
    return tokenizer


def _type_of(name: str, decoder: dict[str, Any]) -> str:
    return str(decoder["config"].get("model_type", name.removeprefix("llm/")))


def _strategy(vision: dict[str, Any]) -> Literal["default", "full"]:
    return "default" if vision["pooling"] == "class" and not vision["class_in_features"] else "full"


def _positions(vision: dict[str, Any]) -> int:
    return int(vision["position_grid"]) ** 2 + int(vision["class_in_features"])


def _pad(tokenizer: HubTokenizer) -> str:
    assert tokenizer.eos is not None
    return tokenizer.pad or tokenizer.eos


def _image_token(tokenizer: HubTokenizer, rows: int) -> tuple[int, int]:
    """The id of the placeholder of an image, added if there is none, and the number of word vectors with it."""
    from tokenizers import AddedToken

    if tokenizer.backend.token_to_id(IMAGE) is None:
        tokenizer.backend.add_special_tokens([AddedToken(IMAGE, special=True)])
    number = tokenizer.id_of(IMAGE)
    return number, max(rows, number + 1)


def _with_rows(name: str, tensor: Tensor, rows: int, checkpoint: Checkpoint, pipeline: Pipeline) -> Tensor:
    """Word vectors with further rows of zeros; other weights as they are."""
    assert pipeline.model.decoder is not None
    embedding: Any = pipeline.model.decoder.model.get_input_embeddings()  # type: ignore[operator, union-attr]
    names = [key for key, part in pipeline.model.decoder.named_modules() if part is embedding]
    words = {"output_projection.weight", *(f"{key}.weight" for key in names)}
    if name not in words or len(tensor) >= rows:
        return tensor
    return torch.cat([tensor, tensor.new_zeros(rows - len(tensor), tensor.shape[1])])


def _weights(checkpoint: Checkpoint, decoder: dict[str, Tensor], vision: dict[str, Any]) -> dict[str, Tensor]:
    """All weights; the last norm of the tower, which LLaVA does not read, is that of a new one."""
    images, depth = weights_of("image_encoder", checkpoint.weights), vision["depth"]
    tower = "model.vision_tower."
    read = clip_image if vision["pooling"] == "class" else siglip_image
    width = torch.ones(vision["dim"])
    language = {
        f"model.language_model.{name.removeprefix('model.')}": tensor
        for name, tensor in decoder.items()
        if name.startswith("model.")
    }
    return {
        **read(images, tower, depth),
        f"{tower}post_layernorm.weight": width,
        f"{tower}post_layernorm.bias": torch.zeros_like(width),
        **linear(decoder, "projector.map.0", "model.multi_modal_projector.linear_1"),
        **linear(decoder, "projector.map.2", "model.multi_modal_projector.linear_2"),
        **language,
        "lm_head.weight": decoder["output_projection.weight"],
    }


def _save_processor(pipeline: Pipeline, tokenizer: HubTokenizer, vision: dict[str, Any], folder: Path) -> None:
    from transformers import LlavaProcessor

    encoder, decoder = pipeline.model.image_encoder, pipeline.model.decoder
    assert encoder is not None
    assert decoder is not None
    assert decoder.template is not None
    cls = "CLIPImageProcessor" if vision["pooling"] == "class" else "SiglipImageProcessor"
    images = image_processor(pipeline.transform, encoder.image_mean, encoder.image_std, cls)
    words = tokenizer.library_tokenizer((), (), 1_000_000_000, _pad(tokenizer), "input_ids", "attention_mask")
    words.padding_side = "left"
    template = _chat_template(decoder.template, pipeline.tokenizer.start_text)
    words.chat_template = template
    processor = LlavaProcessor(
        image_processor=images, tokenizer=words, patch_size=vision["patch_size"], image_token=IMAGE,
        vision_feature_select_strategy=_strategy(vision), chat_template=template,
        num_additional_image_tokens=int(vision["pooling"] == "class"),
    )  # fmt: skip
    processor.save_pretrained(folder)
    images.save_pretrained(folder)
    words.save_pretrained(folder)


def _chat_template(template: str, start: str | None) -> str:
    """One turn of a user, with an image and a text, as a template of Jinja."""
    text = template if "{image}" in template else f"{{image}}{template}"
    if start is not None and start not in text:
        text = start + text
    before, place, after = text.replace("{image}", IMAGE).partition("{text}")
    quote = [json.dumps(part, ensure_ascii=False) for part in (before, after)]
    asked = (
        "{% if m['content'] is string %}{{ m['content'] | trim }}{% else %}{% for p in m['content'] %}"
        "{% if p['type'] == 'text' %}{{ p['text'] | trim }}{% endif %}{% endfor %}{% endif %}"
    )
    one = "{% if messages | length != 1 %}{{ raise_exception('one turn of the user is read') }}{% endif %}"
    turn = f"{{{{ {quote[0]} }}}}{asked if place else ''}{{{{ {quote[1]} }}}}"
    return f"{one}{{% for m in messages %}}{turn}{{% endfor %}}"
