"""`LlavaForConditionalGeneration` of transformers with an `llm/*`; the inverse of `velm.sources.hf_vlm`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from velm.checkpoint import Checkpoint, weights_of
from velm.exports.hf_files import library_config, save_library_model, save_processor
from velm.exports.hf_images import image_processor, transform_limits
from velm.exports.hf_tokenizer import HubTokenizer, require_tokenizer
from velm.exports.hf_vision import VisionTower, vision_limits, vision_tower
from velm.exports.layouts import linear
from velm.exports.requirements import options_of, part_limits
from velm.pipeline import Pipeline
from velm.prompt import CHAT

__all__ = ["write_llava"]

CLASS = "LlavaForConditionalGeneration"
IMAGE = "<image>"
_TOWERS = ("clip_vision_model", "metaclip_2_vision_model", "siglip_vision_model", "vit", "dinov2")
_DECODER = {"projector": "mlp", "shuffle": 1, "prefix_norm": None, "prefix_attention": "causal"}


def write_llava(checkpoint: Checkpoint, pipeline: Pipeline, folder: Path) -> str:
    """Write the model with its processor, whose chat template is the decoder's template.

    Raises:
        ExportError: the class cannot express the model; the message names each reason.
    """
    tokenizer = _require(checkpoint, pipeline)
    from transformers import GenerationConfig, LlavaConfig, LlavaForConditionalGeneration

    name, decoder = options_of(checkpoint, "decoder")
    tower = vision_tower(checkpoint, "block")
    weights = weights_of("decoder", checkpoint.weights)
    image_id, rows = _image_token(tokenizer, len(weights["output_projection.weight"]))
    weights = {key: _with_rows(key, tensor, rows, pipeline) for key, tensor in weights.items()}
    ids = {"eos_token_id": pipeline.tokenizer.eos_id, "pad_token_id": tokenizer.id_of(_pad(tokenizer))}
    text = library_config(name, decoder, **ids, vocab_size=rows)
    config = LlavaConfig(
        vision_config=tower.config,
        text_config=text,
        image_token_index=image_id,
        image_seq_length=tower.positions + int(tower.class_in_features),
        vision_feature_layer=tower.layer,
        vision_feature_select_strategy=_strategy(tower),
        tie_word_embeddings=bool(getattr(text, "tie_word_embeddings", False)),
    )
    state = _weights(tower, weights)
    unread = tuple(f"model.vision_tower.{part}" for part in tower.unread)
    save_library_model(LlavaForConditionalGeneration, config, state, folder, unread)
    suppress = sorted({*pipeline.captioner.token_ids()["suppress"], *range(checkpoint.config["vocab_size"], rows)})
    GenerationConfig(**ids, suppress_tokens=suppress or None).save_pretrained(folder)
    _save_processor(pipeline, tokenizer, tower, folder)
    return CLASS


def _require(checkpoint: Checkpoint, pipeline: Pipeline) -> HubTokenizer:
    """The tokenizer, if the class can express the model."""
    limits = vision_limits(checkpoint, CLASS, "block", _TOWERS)
    name = options_of(checkpoint, "decoder")[0]
    limits += part_limits(checkpoint, "decoder", name, _DECODER, CLASS)
    if checkpoint.config["decoder"].get("template") is None:
        limits.append(f"decoder.template is None, and {CLASS} needs one, 'USER: {{image}}\\n{{text}}' or 'chat'")
    if list(checkpoint.config.get("memory") or ["image"]) != ["image"]:
        limits.append(f"memory is {checkpoint.config['memory']}, and {CLASS} reads images")
    if "decoder.output_projection.bias" in checkpoint.weights:
        limits.append("its output projection has a bias")
    limits += transform_limits(pipeline.transform)
    return require_tokenizer(pipeline.tokenizer, CLASS, limits, _tokenizer_limits)


def _tokenizer_limits(tokenizer: HubTokenizer) -> list[str]:
    if tokenizer.eos is not None and tokenizer.rows == list(range(len(tokenizer.rows))):
        return []
    return ["its tokenizer has no eos of its own, or is not that of a language model (hf/*)"]


def _strategy(tower: VisionTower) -> Literal["default", "full"]:
    return "default" if tower.class_token and not tower.class_in_features else "full"


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


def _with_rows(name: str, tensor: Tensor, rows: int, pipeline: Pipeline) -> Tensor:
    """Word vectors with further rows of zeros; other weights as they are."""
    assert pipeline.model.decoder is not None
    embedding: Any = pipeline.model.decoder.model.get_input_embeddings()  # type: ignore[operator, union-attr]
    names = [key for key, part in pipeline.model.decoder.named_modules() if part is embedding]
    words = {"output_projection.weight", *(f"{key}.weight" for key in names)}
    if name not in words or len(tensor) >= rows:
        return tensor
    return torch.cat([tensor, tensor.new_zeros(rows - len(tensor), tensor.shape[1])])


def _weights(tower: VisionTower, decoder: dict[str, Tensor]) -> dict[str, Tensor]:
    """All weights."""
    language = {
        f"model.language_model.{name.removeprefix('model.')}": tensor
        for name, tensor in decoder.items()
        if name.startswith("model.")
    }
    return {
        **{f"model.vision_tower.{name}": tensor for name, tensor in tower.weights.items()},
        **linear(decoder, "projector.map.0", "model.multi_modal_projector.linear_1"),
        **linear(decoder, "projector.map.2", "model.multi_modal_projector.linear_2"),
        **language,
        "lm_head.weight": decoder["output_projection.weight"],
    }


def _save_processor(pipeline: Pipeline, tokenizer: HubTokenizer, tower: VisionTower, folder: Path) -> None:
    decoder = pipeline.model.decoder
    assert decoder is not None
    assert decoder.template is not None
    images = image_processor(pipeline, "CLIPImageProcessor" if tower.class_token else "SiglipImageProcessor")
    words = tokenizer.library_tokenizer((), (), 1_000_000_000, _pad(tokenizer), "input_ids", "attention_mask")
    words.padding_side = "left"
    words.chat_template = _chat_template(decoder.template, pipeline)
    save_processor(
        "LlavaProcessor", images, words, folder, patch_size=tower.config.patch_size, image_token=IMAGE,
        vision_feature_select_strategy=_strategy(tower), chat_template=words.chat_template,
        num_additional_image_tokens=int(tower.class_token),
    )  # fmt: skip


def _chat_template(template: str, pipeline: Pipeline) -> str:
    """One turn of a user, with an image and a text, as a template of Jinja."""
    if template == CHAT:
        text = pipeline.tokenizer.render_chat([{"role": "user", "content": "{image}{text}"}], prompt=True)
    else:
        text, start = template if "{image}" in template else f"{{image}}{template}", pipeline.tokenizer.start_text
        text = start + text if start is not None and start not in text else text
    before, place, after = text.replace("{image}", IMAGE).partition("{text}")
    quote = [json.dumps(part, ensure_ascii=False) for part in (before, after)]
    asked = (
        "{% if m['content'] is string %}{{ m['content'] | trim }}{% else %}{% for p in m['content'] %}"
        "{% if p['type'] == 'text' %}{{ p['text'] | trim }}{% endif %}{% endfor %}{% endif %}"
    )
    one = "{% if messages | length != 1 %}{{ raise_exception('one turn of the user is read') }}{% endif %}"
    turn = f"{{{{ {quote[0]} }}}}{asked if place else ''}{{{{ {quote[1]} }}}}"
    return f"{one}{{% for m in messages %}}{turn}{{% endfor %}}"
