"""BLIP, GIT and VisionEncoderDecoder of transformers: captioners, whose decoders read the class token, too."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from velm.data.text.hf import HFTokenizer
from velm.pretrained import hub
from velm.sources.foreign import ForeignModel
from velm.sources.hf_clip import clip_image_encoder, clip_image_weights
from velm.sources.hf_images import image_options
from velm.sources.hf_towers import class_prefix, image_tower, name_of, open_tokenizer, read_model, require_class
from velm.sources.state_dict import StateDict, class_token, renamed

__all__ = ["blip", "captioner", "first", "git", "require_eos", "vision_encoder_decoder"]

LONGEST = 64
"""Tokens of a caption by default; `data.max_length` may raise it up to what the decoder holds."""

Weights = Callable[[Any, StateDict], dict[str, Tensor]]


def blip(name: str, config: Any) -> ForeignModel:
    """`BlipForConditionalGeneration` (Li et al. 2022, arXiv 2201.12086): [DEC] begins a caption, [SEP] ends it."""
    cls = "BlipForConditionalGeneration"
    require_class(config, cls)
    text, vision = config.text_config, config.vision_config
    require_eos(open_tokenizer(name), [text.sep_token_id])
    data, mean, std = image_options(name, vision.image_size)
    image = clip_image_encoder(vision, mean, std) | {"input_norm": False, "patch_bias": True}
    return captioner(
        name,
        image=image | {"class_in_features": True},
        decoder=_library_decoder(text, text.bos_token_id),
        data=data,
        loss={"label_smoothing": float(text.label_smoothing)} if text.label_smoothing else {},
        length=int(text.max_position_embeddings),
        read_weights=partial(_read, name, config, cls, (), _blip_weights),
    )


def vision_encoder_decoder(name: str, config: Any) -> ForeignModel:
    """`VisionEncoderDecoderModel`: any image tower, and any language model with cross-attention, such as GPT-2."""
    cls = "VisionEncoderDecoderModel"
    require_class(config, cls)
    generation = hub.generation_config(name)
    start = first(config, generation, config.decoder, key="decoder_start_token_id")
    start = first(config, generation, config.decoder, key="bos_token_id") if start is None else start
    if start is None:
        raise ValueError("neither its config nor its generation_config.json names a decoder_start_token_id.")
    eos = first(generation, config, config.decoder, key="eos_token_id")
    require_eos(open_tokenizer(name), eos if isinstance(eos, list) else [eos])
    size = getattr(config.encoder, "image_size", None)
    data, mean, std = image_options(name, size if isinstance(size, int) else 224)
    places = int(getattr(config.decoder, "max_position_embeddings", None) or LONGEST)
    return captioner(
        name,
        image=image_tower(config.encoder, mean, std, class_in_features=True),
        decoder=_library_decoder(config.decoder, int(start)),
        data=data,
        loss={},
        length=places - (2 if "roberta" in config.decoder.model_type else 0),  # its positions begin behind pad's
        read_weights=partial(_read, name, config, cls, ("encoder.pooler",), _encoder_decoder_weights),
    )


def git(name: str, config: Any) -> ForeignModel:
    """`GitForCausalLM` (Wang et al. 2022, arXiv 2205.14100) for single images: CLIP's tower before one Transformer."""
    cls = "GitForCausalLM"
    require_class(config, cls)
    if config.num_image_with_embedding is not None:
        raise ValueError(f"it reads {config.num_image_with_embedding} frames of a video, and VELM reads single images.")
    generation = hub.generation_config(name)
    eos = first(generation, config, key="eos_token_id")
    require_eos(open_tokenizer(name), eos if isinstance(eos, list) else [eos])
    data, mean, std = image_options(name, config.vision_config.image_size)
    values = hub.portable_config(config) | {"vision_config": {"layer_norm_eps": config.vision_config.layer_norm_eps}}
    return captioner(
        name,
        image=clip_image_encoder(config.vision_config, mean, std) | {"class_in_features": True},
        decoder={"name": "git", "config": values, "start_id": int(first(generation, config, key="bos_token_id"))},
        data=data,
        loss={},
        length=int(config.max_position_embeddings),
        read_weights=partial(_read, name, config, cls, (), _git_weights),
    )


def captioner(
    name: str,
    *,
    image: dict[str, Any],
    decoder: dict[str, Any],
    data: dict[str, Any],
    loss: dict[str, Any],
    length: int,
    read_weights: Callable[[int], dict[str, Tensor]],
    longest: int = LONGEST,
) -> ForeignModel:
    """A model of an image tower and a decoder.

    Args:
        length: most tokens that the decoder holds.
        longest: `data.max_length` unless the run says otherwise.
    """
    return ForeignModel(
        name=f"hf/{name}",
        model={"image_encoder": image, "decoder": decoder},
        data={"tokenizer": {"name": f"hf/{name}"}, **data, "max_length": min(length, longest)},
        losses={"captioning": loss},
        read_weights=read_weights,
        aligned=False,
    )


def require_eos(tokenizer: HFTokenizer, eos: list[int | None]) -> None:
    """Check that a model's captions end with the eos of its tokenizer.

    Raises:
        ValueError: they do not.
    """
    if any(token is not None for token in eos) and tokenizer.eos_id not in eos:
        raise ValueError(
            f"its captions end with the token {' or '.join(map(str, eos))}, and eos of its tokenizer is "
            f"{tokenizer.eos_id}: they do not belong together. Put the tokenizer files of this model beside its "
            f"weights."
        )


def require_tied(decoder: Any) -> None:
    """Check that words are read and written with the same vectors if the config of a language model says so.

    Raises:
        ValueError: they are not.
    """
    read, written = decoder.get_input_embeddings().weight, decoder.get_output_embeddings().weight
    if getattr(decoder.config, "tie_word_embeddings", False) and read is not written and not torch.equal(read, written):
        raise ValueError(
            "its decoder reads and writes words with different vectors, and its config says that they are the same: "
            "write `tie_word_embeddings: false` into that part of its config.json."
        )


def _library_decoder(config: Any, start_id: int) -> dict[str, Any]:
    return {"name": f"hf/{config.model_type}", "config": hub.portable_config(config), "start_id": start_id}


def _read(
    name: str, config: Any, cls: str, new_parts: tuple[str, ...], weights_of: Weights, vocab_size: int
) -> dict[str, Tensor]:
    model, state = read_model(name, config, cls, new_parts)
    weights = weights_of(model, state)
    state.finish()
    return weights


def _blip_weights(model: Any, state: StateDict) -> dict[str, Tensor]:
    image = _blip_image_weights(state, "vision_model.", model.config.vision_config.num_hidden_layers)
    return renamed(image, "model.image_encoder.") | _decoder_weights(state, "text_decoder.", model.text_decoder)


def _git_weights(model: Any, state: StateDict) -> dict[str, Tensor]:
    image = clip_image_weights(state, class_prefix(state), model.config.vision_config.num_hidden_layers)
    weights = renamed(image, "model.image_encoder.") | state.linear("output", "model.decoder.output_projection")
    return weights | renamed(state.below("git."), "model.decoder.model.")


def _encoder_decoder_weights(model: Any, state: StateDict) -> dict[str, Tensor]:
    state.below("encoder.pooler.")  # the decoder reads the positions
    weights = renamed(state.below("encoder."), "model.image_encoder.model.")
    weights |= renamed(state.below("enc_to_dec_proj."), "model.decoder.memory_projection.")
    return weights | _decoder_weights(state, "decoder.", model.decoder)


def _decoder_weights(state: StateDict, prefix: str, decoder: nn.Module) -> dict[str, Tensor]:
    """Weights of a language model, `prefix` being that of their names, for an `HFDecoder`."""
    require_tied(decoder)
    weights = state.below(prefix)
    output = name_of(decoder, decoder.get_output_embeddings())  # type: ignore[operator]
    projection = {part: weights.pop(f"{output}.{part}") for part in ("weight", "bias") if f"{output}.{part}" in weights}
    return renamed(projection, "model.decoder.output_projection.") | renamed(weights, "model.decoder.model.")


def _blip_image_weights(state: StateDict, tower: str, depth: int) -> dict[str, Tensor]:
    embeddings = f"{tower}embeddings"
    token, positions = (state.take(f"{embeddings}.{part}_embedding") for part in ("class", "position"))
    weights = {
        **state.linear(f"{embeddings}.patch_embedding", "patches"),
        **class_token(token.flatten(), positions[0]),
        **state.linear(f"{tower}post_layernorm", "norm"),
    }
    for block in range(depth):
        layer, to = f"{tower}encoder.layers.{block}", f"blocks.{block}"
        weights |= {
            **state.linear(f"{layer}.layer_norm1", f"{to}.attention_norm"),
            **state.linear(f"{layer}.self_attn.projection", f"{to}.attention.output"),
            **state.linear(f"{layer}.layer_norm2", f"{to}.mlp_norm"),
            **state.linear(f"{layer}.mlp.fc1", f"{to}.mlp.0"),
            **state.linear(f"{layer}.mlp.fc2", f"{to}.mlp.3"),
        }
        for part in ("weight", "bias"):
            query, keys, values = state.take(f"{layer}.self_attn.qkv.{part}").chunk(3)
            weights[f"{to}.attention.query.{part}"] = query.clone()
            weights[f"{to}.attention.key_value.{part}"] = torch.cat([keys, values])
    return weights


def first(*configs: Any, key: str) -> Any:
    """The first value of `key` in the configs that is not None; None if there is none."""
    return next((value for each in configs if (value := getattr(each, key, None)) is not None), None)
