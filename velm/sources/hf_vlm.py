"""LLaVA, Idefics3, SmolVLM and PaliGemma of transformers: an image tower, a projector and a causal language model.

The positions of an image are no tokens in VELM: what is around them is the decoder's template.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from velm.pretrained import hub
from velm.sources.foreign import ForeignModel
from velm.sources.hf_captioners import captioner, first, require_eos
from velm.sources.hf_features import Tower, bucketed, llava_features, siglip_features
from velm.sources.hf_images import image_options, tile_options
from velm.sources.hf_templates import open_library_tokenizer, prompt_template
from velm.sources.hf_towers import open_tokenizer, read_model, require_class
from velm.sources.state_dict import StateDict, renamed

__all__ = ["idefics3", "llava", "paligemma"]

LLAVA_PROMPT = "USER: <image>\n{text} ASSISTANT:"
"""Of LLaVA-1.5 (arXiv 2310.03744), for folders without a chat template."""

LONGEST = 256
"""Tokens of a prompt and its answer by default; `data.max_length` may raise it up to what the language model holds."""

Projector = Callable[[StateDict], dict[str, Tensor]]


def llava(name: str, config: Any) -> ForeignModel:
    """`LlavaForConditionalGeneration` (Liu et al. 2023, arXiv 2304.08485, 2310.03744), LLaVA and LLaVA-1.5."""
    require_class(config, "LlavaForConditionalGeneration")
    vision, layer = config.vision_config, config.vision_feature_layer
    if not isinstance(layer, int):
        raise ValueError(f"it reads the blocks {list(layer)} of its image tower side by side, and VELM reads one.")
    if config.projector_hidden_act != "gelu":
        raise ValueError(f"the activation of its projector is {config.projector_hidden_act!r}, and VELM's is gelu.")
    data, mean, std = image_options(name, vision.image_size)
    select = config.vision_feature_select_strategy
    tower = llava_features(vision, mean, std, layer, select, "model.vision_tower.")
    template = prompt_template(name, LLAVA_PROMPT)
    decoder = _decoder(config, projector="mlp", template=template)
    return _model(name, config, "language_model", tower, decoder, data, _llava_projector)


def _llava_projector(state: StateDict) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    for number, index in ((1, 0), (2, 2)):
        layer, to = f"model.multi_modal_projector.linear_{number}", f"model.decoder.projector.map.{index}"
        weights |= state.linear(layer, to, bias=f"{layer}.bias" in state)
        weights.setdefault(f"{to}.bias", torch.zeros(len(weights[f"{to}.weight"])))  # multimodal_projector_bias: false
    return weights


def paligemma(name: str, config: Any) -> ForeignModel:
    """`PaliGemmaForConditionalGeneration` (Beyer et al. 2024, arXiv 2407.07726): image and text see each other.

    The embedding of Gemma multiplies words by the root of the width; vectors of the image are not multiplied.
    """
    require_class(config, "PaliGemmaForConditionalGeneration")
    if config.text_config.model_type != "gemma":
        raise ValueError(
            f"its language model is {config.text_config.model_type}: PaliGemma 2's caps its logits and its attention "
            f"(final_logit_softcapping, attn_logit_softcapping), which VELM's losses and search do not do. PaliGemma "
            f"of the first version, such as google/paligemma-3b-mix-224, can be imported."
        )
    vision = config.vision_config
    data, mean, std = image_options(name, vision.image_size)
    tower = siglip_features(vision, mean, std, int(vision.num_hidden_layers), True, "model.vision_tower.")
    bos = open_library_tokenizer(name).bos_token
    decoder = _decoder(
        config, projector="affine", prefix_attention="bidirectional", template=f"{{image}}{bos}{{text}}\n"
    )
    decoder["config"]["use_bidirectional_attention"] = None  # the masks say what is seen
    projector = partial(_linear, "model.multi_modal_projector.linear", True)
    return _model(name, config, "language_model", tower, decoder, data, projector)


def idefics3(name: str, config: Any) -> ForeignModel:
    """`Idefics3ForConditionalGeneration` and `SmolVLMForConditionalGeneration` (arXiv 2408.12637, 2504.05299).

    An image is read once, as a square; the originals read tiles of it, too, see `velm.sources.hf_images.tile_options`.
    """
    cls = {"idefics3": "Idefics3", "smolvlm": "SmolVLM"}[config.model_type]
    require_class(config, f"{cls}ForConditionalGeneration")
    vision = config.vision_config
    data, mean, std = tile_options(name, vision.image_size)
    part, read = siglip_features(vision, mean, std, int(vision.num_hidden_layers), True, "model.vision_model.")

    def read_tower(state: StateDict) -> dict[str, Tensor]:
        positions = "model.vision_model.embeddings.position_embedding.weight"
        state.tensors[positions] = bucketed(state.tensors[positions])
        return read(state)

    around = "<fake_token_around_image><global-img>{image}<fake_token_around_image>"
    template = prompt_template(name, "User:<image>{text}<end_of_utterance>\nAssistant:", around)
    decoder = _decoder(config, projector="linear", shuffle=int(config.scale_factor), template=template)
    projector = partial(_linear, "model.connector.modality_projection.proj", False)
    return _model(name, config, "text_model", (part, read_tower), decoder, data, projector)


def _linear(layer: str, bias: bool, state: StateDict) -> dict[str, Tensor]:
    return state.linear(layer, "model.decoder.projector.map", bias=bias)


def _decoder(config: Any, **options: Any) -> dict[str, Any]:
    """The part config of the language model; whether its head is tied is said by the config of the whole."""
    text = config.text_config
    values = hub.portable_config(text) | {"tie_word_embeddings": bool(config.tie_word_embeddings)}
    return {"name": f"llm/{text.model_type}", "config": values, **options}


def _model(
    name: str,
    config: Any,
    language: str,
    tower: Tower,
    decoder: dict[str, Any],
    data: dict[str, Any],
    projector: Projector,
) -> ForeignModel:
    """The whole; `language` names the language model in the state dict."""
    places = int(getattr(config.text_config, "max_position_embeddings", None) or 4 * LONGEST)
    text, generation, tokenizer = config.text_config, hub.generation_config(name), open_tokenizer(name)
    eos = first(generation, text, key="eos_token_id")
    require_eos(tokenizer, eos if isinstance(eos, list) else [eos])
    if not -4 <= text.vocab_size - tokenizer.vocab_size <= 1024:  # pad, bos, eos, unk
        raise ValueError(
            f"its tokenizer has {tokenizer.vocab_size} tokens, its language model knows {text.vocab_size}: they do not "
            f"belong together. Put the tokenizer files of this model beside its weights."
        )
    return captioner(
        name,
        image=tower[0],
        decoder=decoder,
        data=data,
        loss={},
        length=(places - _image_positions(tower[0], decoder)) // 2,  # a prompt, and as much for what is written
        longest=LONGEST,
        read_weights=partial(_read, name, config, language, tower, projector),
    )


def _image_positions(image: dict[str, Any], decoder: dict[str, Any]) -> int:
    """Positions that an image of the model's own size takes, with a class token."""
    vision = image.get("config", {})
    grid = image.get("position_grid") or int(vision["image_size"]) // int(vision["patch_size"])
    return (int(grid) // decoder.get("shuffle", 1)) ** 2 + 1


def _read(
    name: str, config: Any, language: str, tower: Tower, projector: Projector, vocab_size: int
) -> dict[str, Tensor]:
    model, state = read_model(name, config, config.architectures[0])
    if config.tie_word_embeddings and not torch.equal(
        model.get_input_embeddings().weight, model.get_output_embeddings().weight
    ):
        raise ValueError(
            "its language model reads and writes words with different vectors, and its config says that they are the "
            "same: write `tie_word_embeddings: false` into its config.json."
        )
    weights = tower[1](state) | projector(state)
    weights |= renamed(state.below(f"model.{language}."), "model.decoder.model.")
    weights |= state.linear("lm_head", "model.decoder.output_projection", bias=False)
    state.finish()
    return weights
