"""Prefix, forbidden and required phrases and a closed set of answers: checked against each other, then compiled."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from velm.generation.config import GenerationConfig
from velm.generation.phrases import MOST_REQUIRED, NEVER, Phrases
from velm.generation.trie import Trie

__all__ = ["compile_rules"]

Name = Callable[[Sequence[int]], str]


def compile_rules(
    config: GenerationConfig,
    *,
    eos_id: int,
    suppress: Sequence[int],
    vocab_size: int,
    limit: int,
    name: Name = repr,
    device: torch.device | str = "cpu",
) -> Phrases | Trie | None:
    """What keeps a search to the rules of a config; None where it has none that need the sentence's past.

    Args:
        config: `prefix`, `forbidden`, `must_include`, `answers` and `min_length` are read.
        eos_id: the token that ends a sentence.
        suppress: token ids that are never written.
        vocab_size: number of tokens.
        limit: most tokens that can be written, eos included.
        name: how a message names tokens.
        device: where scores will be.

    Raises:
        ValueError: no sentence keeps all the rules; the message says which two of them quarrel.
    """
    _check_tokens(config, eos_id, suppress, vocab_size, name)
    _check_forbidden(config, name)
    if len(config.prefix) >= limit:
        raise ValueError(
            f"prefix {name(config.prefix)} has {len(config.prefix)} tokens and leaves no room to end: at most {limit} "
            "tokens are written, eos included. Shorten it, or raise max_length."
        )
    if config.answers is not None:
        return Trie(_answers(config, limit, name), eos_id=eos_id, vocab_size=vocab_size, device=device)
    if not config.forbidden and not config.must_include:
        return None
    if len(config.must_include) > MOST_REQUIRED:
        raise ValueError(f"must_include has {len(config.must_include)} phrases; it takes up to {MOST_REQUIRED}.")
    phrases = Phrases(
        config.must_include, config.forbidden, eos_id=eos_id, suppress=suppress, vocab_size=vocab_size, device=device
    )
    _check_room(config, phrases, limit, name)
    return phrases


def _check_tokens(config: GenerationConfig, eos_id: int, suppress: Sequence[int], vocab_size: int, name: Name) -> None:
    wanted = {"prefix": [config.prefix], "must_include": config.must_include, "answers": config.answers or ()}
    for rule, phrases in {**wanted, "forbidden": config.forbidden}.items():
        for phrase in phrases:
            for token in phrase:
                if not 0 <= token < vocab_size:
                    raise ValueError(
                        f"{rule}: token {token} is not in the vocabulary of {vocab_size} tokens (0 to V - 1)."
                    )
                if token == eos_id or (rule in wanted and token in suppress):
                    raise ValueError(f"{rule} {name(phrase)} holds token {token}, which is never written as a word.")


def _check_forbidden(config: GenerationConfig, name: Name) -> None:
    wanted = {"prefix": [config.prefix], "must_include": config.must_include, "answers": config.answers or ()}
    for rule, phrases in wanted.items():
        for phrase in phrases:
            for taboo in config.forbidden:
                if _holds(phrase, taboo):
                    raise ValueError(
                        f"{rule} {name(phrase)} holds {name(taboo)}, which is forbidden; take one of the two away."
                    )


def _answers(config: GenerationConfig, limit: int, name: Name) -> list[Sequence[int]]:
    """The answers that begin with the prefix and hold what must be included."""
    assert config.answers is not None
    for answer in config.answers:
        length = len(answer) + 1
        if length > limit:
            raise ValueError(f"answer {name(answer)} has {length} tokens with eos; at most {limit} are written.")
        if length < config.min_length:
            raise ValueError(
                f"answer {name(answer)} has {length} tokens with eos; min_length asks for {config.min_length}."
            )
    prefix = tuple(config.prefix)
    begun = [answer for answer in config.answers if tuple(answer[: len(prefix)]) == prefix]
    if not begun:
        raise ValueError(f"None of the {len(config.answers)} answers begins with the prefix {name(prefix)}.")
    kept = [answer for answer in begun if all(_holds(answer, phrase) for phrase in config.must_include)]
    if not kept:
        wanted = ", ".join(name(phrase) for phrase in config.must_include)
        raise ValueError(f"None of the {len(begun)} answers left to choose from holds what must be included: {wanted}.")
    return kept


def _check_room(config: GenerationConfig, phrases: Phrases, limit: int, name: Name) -> None:
    """The shortest sentence that keeps the rules must fit."""
    state = torch.zeros(1, dtype=torch.int64, device=phrases.symbols.device)
    for token in config.prefix:
        state = phrases.advance(state, torch.full_like(state, token))
    missing = int(phrases.remaining(state))
    needed = len(config.prefix) + missing + 1
    wanted = ", ".join(name(phrase) for phrase in config.must_include)
    if missing >= NEVER:
        raise ValueError(f"must_include {wanted} cannot be written without something that is forbidden.")
    if config.must_include and needed > limit:
        raise ValueError(
            f"must_include {wanted} needs {needed} tokens with the prefix and eos; at most {limit} are written. "
            "Raise max_length, or ask for less."
        )


def _holds(tokens: Sequence[int], phrase: Sequence[int]) -> bool:
    """Whether the phrase stands somewhere in the tokens."""
    size = len(phrase)
    return any(tuple(tokens[i : i + size]) == tuple(phrase) for i in range(len(tokens) - size + 1))
