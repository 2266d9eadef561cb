"""The rules of a `GenerationConfig`: checked against each other, compiled once, applied at each step.

`prefix`, `forbidden`, `must_include`, `answers`, `min_length` and `no_repeat_ngram` set the scores of tokens to -inf.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from velm.decoders.base import Decoder
from velm.generation.config import GenerationConfig, Tokens
from velm.generation.phrases import MOST_REQUIRED, NEVER, Phrases
from velm.generation.trie import Trie

Name = Callable[[Tokens], str]
"""How error messages name a phrase."""


class Constraints:
    """The compiled rules of a config for a decoder.

    The tokens of a hypothesis are summarised in its state, an int64; the empty text has state 0. If `no_repeat_ngram`
    and `min_length` leave a hypothesis no token, it may end; if it may not end because a required phrase is missing,
    these two rules are dropped for this step.

    Args:
        decoder: gives the vocabulary size V and the longest text.
        name: how error messages name a phrase.

    Raises:
        ValueError: no text satisfies all rules; the message says which two conflict.
    """

    def __init__(
        self,
        config: GenerationConfig,
        decoder: Decoder,
        *,
        eos_id: int,
        suppress: Sequence[int],
        device: torch.device | str = "cpu",
        name: Name = repr,
    ) -> None:
        self.vocab_size = decoder.output_projection.out_features
        for token in (eos_id, *suppress):
            _check_token(token, self.vocab_size)
        longest = decoder.max_length
        self.limit = config.max_length if longest is None else min(config.max_length, longest)
        self.config, self.eos_id = config, eos_id
        self.suppress = torch.tensor(sorted(set(suppress)), dtype=torch.int64, device=device)
        self.rules = self._compile(suppress, device, name)
        self.may_stick = self.rules is not None or len({*suppress, eos_id}) == self.vocab_size
        self.repeats = config.no_repeat_ngram if config.answers is None else 0

    def __call__(self, scores: Tensor, tokens: Tensor, states: Tensor) -> Tensor:
        """Set the scores of tokens that may not come next to -inf.

        Args:
            scores: float (R, V); may be modified.
            tokens: int64 (R, t), generated so far.
            states: int64 (R,).
        """
        length = tokens.shape[1]
        if length < len(self.config.prefix):
            token = self.config.prefix[length]
            return torch.full_like(scores, -torch.inf).index_copy(
                1, self.suppress.new_tensor([token]), scores[:, token : token + 1]
            )
        hard = scores.index_fill_(1, self.suppress, -torch.inf)
        if self.rules is not None:
            hard = self.rules.forbid(hard, states, self.limit - length)
        soft = forbid_repeats(hard, tokens, self.repeats) if self.repeats else hard
        if length + 1 < self.config.min_length:
            soft = soft.clone() if soft is hard and self.may_stick else soft
            soft[:, self.eos_id] = -torch.inf
        return soft if soft is hard else self._unstick(soft, hard)

    def _compile(self, suppress: Sequence[int], device: torch.device | str, name: Name) -> Phrases | Trie | None:
        """The automaton of phrases or the trie of answers; None if no rule depends on the earlier tokens."""
        config, limit = self.config, self.limit
        _check_phrases(config, self.eos_id, suppress, self.vocab_size, name)
        if len(config.prefix) >= limit:
            raise ValueError(
                f"prefix {name(config.prefix)} has {len(config.prefix)} tokens and leaves no room to end: at most "
                f"{limit} tokens are written, eos included. Shorten it, or raise max_length."
            )
        ids: dict[str, Any] = {"eos_id": self.eos_id, "vocab_size": self.vocab_size, "device": device}
        if config.answers is not None:
            return Trie(_possible_answers(config, limit, name), **ids)
        if not config.forbidden and not config.must_include:
            return None
        if len(config.must_include) > MOST_REQUIRED:
            raise ValueError(f"must_include has {len(config.must_include)} phrases; it takes up to {MOST_REQUIRED}.")
        phrases = Phrases(config.must_include, config.forbidden, suppress=suppress, **ids)
        _check_length(config, phrases, limit, name)
        return phrases

    def advance(self, states: Tensor, tokens: Tensor) -> Tensor:
        """The states after one more token, int64, elementwise."""
        return states if self.rules is None else self.rules.advance(states, tokens)

    def _unstick(self, soft: Tensor, hard: Tensor) -> Tensor:
        """Rows of `soft` without an allowed token may end; where `hard` forbids that, they take the row of `hard`."""
        stuck = soft.amax(dim=1) == -torch.inf
        if not bool(stuck.any()):
            return soft
        may_end = hard[:, self.eos_id] > -torch.inf
        soft = soft.where(~(stuck & ~may_end)[:, None], hard)
        soft[:, self.eos_id] = hard[:, self.eos_id].where(stuck, soft[:, self.eos_id])
        return soft


def forbid_repeats(scores: Tensor, tokens: Tensor, size: int) -> Tensor:
    """Set the scores of tokens to -inf that would complete an n-gram of `size` tokens for the second time.

    tokens  a b c a b    size 3    the last two, a b, were followed by c: c is forbidden
    """
    if tokens.shape[1] < size:
        return scores
    ngrams = tokens.unfold(1, size, 1)  # (R, t - size + 1, size)
    tail = tokens[:, tokens.shape[1] - size + 1 :]
    repeated = (ngrams[:, :, :-1] == tail[:, None, :]).all(dim=2)
    rows, columns = repeated.nonzero(as_tuple=True)
    return scores.index_put((rows, ngrams[rows, columns, -1]), scores.new_tensor(-torch.inf))


def _check_token(token: int, vocab_size: int, prefix: str = "") -> None:
    if not 0 <= token < vocab_size:
        raise ValueError(f"{prefix}token {token} is not in the vocabulary of {vocab_size} tokens (0 to V - 1).")


def _check_phrases(config: GenerationConfig, eos_id: int, suppress: Sequence[int], vocab_size: int, name: Name) -> None:
    """Every token can be generated, and no phrase to generate contains a forbidden one."""
    required = {"prefix": [config.prefix], "must_include": config.must_include, "answers": config.answers or ()}
    for rule, phrases in {**required, "forbidden": config.forbidden}.items():
        for phrase in phrases:
            for token in phrase:
                _check_token(token, vocab_size, f"{rule}: ")
                if token == eos_id or (rule in required and token in suppress):
                    raise ValueError(f"{rule} {name(phrase)} holds token {token}, which is never written as a word.")
    for rule, phrases in required.items():
        for phrase in phrases:
            for forbidden in config.forbidden:
                if _contains(phrase, forbidden):
                    raise ValueError(
                        f"{rule} {name(phrase)} holds {name(forbidden)}, which is forbidden; take one of the two away."
                    )


def _possible_answers(config: GenerationConfig, limit: int, name: Name) -> list[Tokens]:
    """The answers that begin with the prefix and contain all required phrases."""
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
    prefixed = [answer for answer in config.answers if tuple(answer[: len(prefix)]) == prefix]
    if not prefixed:
        raise ValueError(f"None of the {len(config.answers)} answers begins with the prefix {name(prefix)}.")
    possible = [answer for answer in prefixed if all(_contains(answer, phrase) for phrase in config.must_include)]
    if not possible:
        required = ", ".join(name(phrase) for phrase in config.must_include)
        raise ValueError(
            f"None of the {len(prefixed)} answers left to choose from holds what must be included: {required}."
        )
    return possible


def _check_length(config: GenerationConfig, phrases: Phrases, limit: int, name: Name) -> None:
    """The shortest text that satisfies the rules has at most `limit` tokens."""
    state = torch.zeros(1, dtype=torch.int64, device=phrases.symbols.device)
    for token in config.prefix:
        state = phrases.advance(state, torch.full_like(state, token))
    missing = int(phrases.remaining(state))
    needed = len(config.prefix) + missing + 1
    required = ", ".join(name(phrase) for phrase in config.must_include)
    if missing >= NEVER:
        raise ValueError(f"must_include {required} cannot be written without something that is forbidden.")
    if config.must_include and needed > limit:
        raise ValueError(
            f"must_include {required} needs {needed} tokens with the prefix and eos; at most {limit} are written. "
            "Raise max_length, or require less."
        )


def _contains(tokens: Tokens, phrase: Tokens) -> bool:
    size = len(phrase)
    return any(tuple(tokens[i : i + size]) == tuple(phrase) for i in range(len(tokens) - size + 1))
