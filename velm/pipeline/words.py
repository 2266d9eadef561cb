"""The words of the options of writing, as the token ids that the engine takes."""

from __future__ import annotations

from typing import Any

from velm.data.text.base import Tokenizer
from velm.errors import PipelineError

__all__ = ["with_ids"]

LISTS = ("forbidden", "must_include", "answers")


def with_ids(tokenizer: Tokenizer, options: dict[str, Any]) -> dict[str, Any]:
    """The options with `prefix`, `forbidden`, `must_include` and `answers` in ids; None among them is left out.

    A word is known by its tokens: with a vocabulary of parts of words, what begins with the same tokens is hit too. A
    forbidden word that the vocabulary lacks is left out, since it cannot be written anyway.

    Raises:
        PipelineError: a word is empty, no text, or not in the vocabulary.
    """
    found = {name: value for name, value in options.items() if value is not None or name not in (*LISTS, "prefix")}
    if "prefix" in found:
        found["prefix"] = _known(tokenizer, "prefix", _text("prefix", found["prefix"]))
    for name in LISTS:
        if name in found:
            if isinstance(found[name], str):
                raise PipelineError(f"{name} is a list, also of one; got {found[name]!r}. Write [{found[name]!r}].")
            found[name] = [_text(f"{name}[{i}]", text) for i, text in enumerate(found[name])]
    if "forbidden" in found:
        spellings = [tokenizer.to_ids(space + text) for text in found["forbidden"] for space in ("", " ")]
        found["forbidden"] = [ids for ids in spellings if tokenizer.unk_id not in ids]
    if "must_include" in found:
        found["must_include"] = [_within(tokenizer, text) for text in found["must_include"]]
    if "answers" in found:
        found["answers"] = [_known(tokenizer, "answers", text) for text in found["answers"]]
    return found


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


def _within(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of words as they are inside a sentence: GPT-2 writes the space before a word into its first token."""
    alone, after_space = _known(tokenizer, "must_include", text), tokenizer.to_ids(f" {text}")
    return alone if after_space[-len(alone) :] == alone else after_space
