"""Checks that a language model behind an image can read and write the data of a run, before training starts."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch

from velm.data.base import Record, text_only
from velm.decoders.llm import LLMDecoder
from velm.decoders.prefix import PrefixDecoder
from velm.errors import ConfigError, VelmError
from velm.model import VisionLanguageModel
from velm.prompt import takes_text
from velm.util import evaluating

__all__ = ["require_prefix_data"]


def require_prefix_data(model: VisionLanguageModel, data: Any) -> None:
    """Check template, padding token and context of a prefix decoder; warns of questions that it does not read.

    Args:
        model: of the run.
        data: a `VisionLanguageData`.

    Raises:
        ConfigError: the answer would stand in the prompt, conversations meet a bidirectional prefix, the tokenizer's
            pad is its eos, `shuffle` does not fit the grid, or prefix and text are longer than the model's context.
    """
    decoder = model.decoder
    if not isinstance(decoder, PrefixDecoder):
        return
    if takes_text(decoder.template) and not data.has_target:
        raise ConfigError(
            f"decoder.template {decoder.template!r} has a place for the text, and the data has no targets, so the "
            f"caption to write would stand in the prompt: name the column of the answers, e.g. "
            f"data.dataset.target_column: answer, or leave {{text}} out of the template."
        )
    if data.has_target and "text" not in model.reads and isinstance(decoder, LLMDecoder):
        warnings.warn(
            f"The data has texts with targets, such as questions with answers, and the decoder reads the image alone "
            f"(decoder.template: {decoder.template!r}): every text of an image has the same prompt. To read the texts: "
            f"decoder.template: 'Question: {{text}} Answer:'.",
            stacklevel=2,
        )
    if decoder.bidirectional and _has_turns(data.records("train")):
        raise ConfigError(
            "The data has conversations of several turns, and decoder.prefix_attention is bidirectional: the earlier "
            "turns are read in one direction in training and in both when an answer is written. Set it to causal, or "
            "data.dataset.use to answers."
        )
    tokenizer = data.tokenizer
    if tokenizer.pad_id == tokenizer.eos_id:
        raise ConfigError(
            f"The tokenizer's pad and eos are both token {tokenizer.eos_id}: a model that learns to end its text would "
            f"learn to write padding. Give pad an id of its own."
        )
    _require_context(model, decoder, data)


def _has_turns(records: Sequence[Record], limit: int = 100) -> bool:
    """Whether a text of the first records has a history; no image is read."""
    return any(any(text_only(records, index).histories or ()) for index in range(min(len(records), limit)))


def _require_context(model: VisionLanguageModel, decoder: PrefixDecoder, data: Any) -> None:
    """Check that the image and a text of `data.max_length` tokens fit, by a prefix that is computed once."""
    if any(hasattr(parameter, "full_tensor") for parameter in model.parameters()):
        return  # FSDP2 has sharded the weights of a run that was checked before
    length, places = _prefix_length(model, decoder, data), getattr(decoder, "places", None)
    needed = length + data.max_length - 1  # eos is not read
    if places is not None and needed > places:
        advice = "join positions of the image (decoder.shuffle, prefix_tokens) or "
        raise ConfigError(
            f"The image takes {length} positions and a text up to {data.max_length} tokens (data.max_length), and the "
            f"decoder holds {places} (max_position_embeddings): {advice if length > 1 else ''}lower data.max_length"
            f"{f' to {places - length + 1}' if places > length else ''}."
        )


@torch.no_grad()
def _prefix_length(model: VisionLanguageModel, decoder: PrefixDecoder, data: Any) -> int:
    """Positions of the prefix of an image, and of a text of the memory, without a prompt."""
    device = decoder.output_projection.weight.device
    try:
        with evaluating(model), torch.compiler.set_stance("force_eager"):  # nothing is compiled for one image
            image = text = None
            if "image" in model.memory_sources:
                size = data.image_size
                image = model.encode_image(torch.zeros(1, 3, size, size, dtype=torch.uint8, device=device))
            if "text" in model.memory_sources:
                tokens = torch.full((1, data.max_length), data.tokenizer.unk_id, device=device)
                text = model.encode_text(tokens, torch.ones_like(tokens, dtype=torch.bool))
            return decoder.embed_prefix(*model.encoder_memory(image, text))[0].shape[1]
    except VelmError:
        raise
    except ValueError as error:  # of `shuffle`
        raise ConfigError(str(error)) from error
