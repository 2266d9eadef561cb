"""`VisionEncoderDecoderModel` of transformers with a decoder `hf/*`; the inverse of `velm.sources.hf_captioners`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from velm.checkpoint import Checkpoint, weights_of
from velm.exports.hf_files import library_config, save_library_model, save_processor
from velm.exports.hf_images import image_processor, transform_limits
from velm.exports.hf_tokenizer import HubTokenizer, require_tokenizer
from velm.exports.hf_vision import vision_limits, vision_tower
from velm.exports.layouts import linear
from velm.exports.requirements import options_of
from velm.pipeline import Pipeline

__all__ = ["write_captioner"]

CLASS = "VisionEncoderDecoderModel"


def write_captioner(checkpoint: Checkpoint, pipeline: Pipeline, folder: Path) -> str:
    """Write the model with its processor.

    Raises:
        ExportError: the class cannot express the model; the message names each reason.
    """
    tokenizer = _require(checkpoint, pipeline)
    from transformers import AutoModelForCausalLM, GenerationConfig, VisionEncoderDecoderConfig
    from transformers import VisionEncoderDecoderModel as Model

    name, decoder = options_of(checkpoint, "decoder")
    tower = vision_tower(checkpoint, "output")
    weights = weights_of("decoder", checkpoint.weights)
    order = _order(tokenizer, len(weights["output_projection.weight"]))
    words = _word_weights(pipeline)
    weights = {key: tensor[order] if key in words else tensor for key, tensor in weights.items()}
    start = pipeline.tokenizer.bos_id if decoder["start_id"] is None else decoder["start_id"]
    pad = tokenizer.pad or tokenizer.eos
    assert tokenizer.eos is not None
    assert pad is not None
    ids = {"eos_token_id": tokenizer.id_of(tokenizer.eos), "pad_token_id": tokenizer.id_of(pad)}
    language = library_config(name, decoder, **ids, bos_token_id=order.index(start), vocab_size=len(order))
    language.is_decoder = language.add_cross_attention = True
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(tower.config, language)
    config.decoder_start_token_id = order.index(start)
    config.eos_token_id, config.pad_token_id = ids["eos_token_id"], ids["pad_token_id"]
    with torch.device("meta"):
        built: Any = AutoModelForCausalLM.from_config(language)
    output = next(key for key, part in built.named_modules() if part is built.get_output_embeddings())
    state = {
        **{f"encoder.{key}": tensor for key, tensor in tower.weights.items()},
        **(linear(weights, "memory_projection", "enc_to_dec_proj") if "memory_projection.weight" in weights else {}),
        **linear(weights, "output_projection", f"decoder.{output}"),
        **{f"decoder.{key[6:]}": tensor for key, tensor in weights.items() if key.startswith("model.")},
    }
    save_library_model(Model, config, state, folder, tuple(f"encoder.{part}" for part in tower.unread))
    suppress = sorted(order.index(token) for token in pipeline.captioner.token_ids()["suppress"] if token < len(order))
    GenerationConfig(
        **ids, decoder_start_token_id=order.index(start), max_new_tokens=checkpoint.max_length - 1,
        suppress_tokens=suppress or None,
    ).save_pretrained(folder)  # fmt: skip
    library = tokenizer.library_tokenizer((), (), checkpoint.max_length, pad, "input_ids", "attention_mask")
    save_processor("TrOCRProcessor", image_processor(pipeline, "CLIPImageProcessor"), library, folder)
    return CLASS


def _require(checkpoint: Checkpoint, pipeline: Pipeline) -> HubTokenizer:
    """The tokenizer, if the class can express the model."""
    limits = vision_limits(checkpoint, CLASS, "output")
    if list(checkpoint.config.get("memory") or ["image"]) != ["image"]:
        limits.append(f"memory is {checkpoint.config['memory']}, and {CLASS} reads images")
    name, options = options_of(checkpoint, "decoder")
    kind = options["config"].get("model_type", name.removeprefix("hf/"))
    if kind == "blip_text_model":
        limits.append(f"the decoder is {name!r}, which {CLASS} cannot build")
    limits += transform_limits(pipeline.transform)
    return require_tokenizer(
        pipeline.tokenizer, CLASS, limits, lambda found: [] if found.eos else ["its tokenizer has no eos of its own"]
    )


def _order(tokenizer: HubTokenizer, rows: int) -> list[int]:
    """The id of VELM of every id of the written model: those of the tokenizer, then those it does not know."""
    known = [row for row in tokenizer.rows if row < rows]
    return known + sorted(set(range(rows)) - set(known))


def _word_weights(pipeline: Pipeline) -> set[str]:
    """The names of the decoder's weights with a row for each token; a bias may have a second name."""
    decoder: Any = pipeline.model.decoder
    read, written = decoder.model.get_input_embeddings(), decoder.output_projection
    rows = {id(weight) for weight in (*read.parameters(), *written.parameters())}
    return {name for name, weight in decoder.named_parameters(remove_duplicate=False) if id(weight) in rows}
