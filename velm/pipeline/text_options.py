"""Generation options with text, converted to token ids."""

from __future__ import annotations

from typing import Any

from velm.data.text.base import Tokenizer
from velm.errors import PipelineError

LISTS = ("forbidden", "must_include", "answers")


def encode_text_options(tokenizer: Tokenizer, options: dict[str, Any], lead: str = "") -> dict[str, Any]:
    """The options with `prefix`, `forbidden`, `must_include` and `answers` as token ids; None values of these go.

    A phrase is its tokens: with subword tokens, longer words that begin with the same tokens match too. A forbidden
    phrase outside the vocabulary is dropped, since it cannot be generated.

    Args:
        tokenizer: of the model.
        options: of generation.
        lead: what stands before a generated text, where `prefix` and `answers` begin (see `Template.lead`).

    Raises:
        PipelineError: a phrase is empty, not text, or not in the vocabulary.
    """
    encoded = {name: value for name, value in options.items() if value is not None or name not in (*LISTS, "prefix")}
    if "prefix" in encoded:
        encoded["prefix"] = _known(tokenizer, "prefix", lead + _text("prefix", encoded["prefix"]))
    for name in LISTS:
        if name in encoded:
            if isinstance(encoded[name], str):
                raise PipelineError(f"{name} is a list, also of one; got {encoded[name]!r}. Write [{encoded[name]!r}].")
            encoded[name] = [_text(f"{name}[{i}]", text) for i, text in enumerate(encoded[name])]
    if "forbidden" in encoded:
        spellings = [tokenizer.to_ids(space + text) for text in encoded["forbidden"] for space in ("", " ")]
        encoded["forbidden"] = [ids for ids in spellings if tokenizer.unk_id not in ids]
    if "must_include" in encoded:
        encoded["must_include"] = [_inside_text(tokenizer, text) for text in encoded["must_include"]]
    if "answers" in encoded:
        encoded["answers"] = [_known(tokenizer, "answers", lead + text) for text in encoded["answers"]]
    return encoded


def _text(name: str, text: Any) -> str:
    if not isinstance(text, str) or not text.strip():
        raise PipelineError(f"{name} is {text!r}; it takes text that is not empty, or is left out.")
    return text


def _known(tokenizer: Tokenizer, name: str, text: str) -> list[int]:
    ids = tokenizer.to_ids(text)
    if not ids or tokenizer.unk_id in ids:
        raise PipelineError(
            f"{name}: {text!r} has a word that is not in the model's vocabulary of {tokenizer.vocab_size}, so it "
            "cannot be written; choose other words."
        )
    return ids


def _inside_text(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a phrase inside a text: GPT-2's first token of a word includes the space before it."""
    alone, after_space = _known(tokenizer, "must_include", text), tokenizer.to_ids(f" {text}")
    return alone if after_space[-len(alone) :] == alone else after_space
