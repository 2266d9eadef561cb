"""Phrases that must come and phrases that may not, as one automaton that reads a sentence token by token.

Aho and Corasick's matcher (1975, doi 10.1145/360825.360855) of all phrases at once, times a bit for each required
phrase that has been met. Every state knows the fewest words that still have to be written, so a search never runs into
a corner: a word is allowed only where what is required still fits behind it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from velm.generation.matcher import Matcher

__all__ = ["MOST_REQUIRED", "Phrases"]

MOST_REQUIRED = 10
"""Required phrases at once: there are up to 2 ** this states for each token of a phrase."""

Phrase = Sequence[int]
NEVER = 1 << 30


class Phrases:
    """The states of sentences with regard to required and forbidden phrases; state 0 is the empty sentence.

    A phrase counts wherever its tokens stand next to each other, also where it overlaps another.

    Args:
        required: phrases of which each must come, at most MOST_REQUIRED.
        forbidden: phrases of which none may come.
        eos_id: the token that ends a sentence, allowed once all required phrases have come.
        suppress: tokens that are never written.
        vocab_size: number of tokens.
        device: where scores will be.
    """

    def __init__(
        self,
        required: Sequence[Phrase],
        forbidden: Sequence[Phrase],
        *,
        eos_id: int,
        suppress: Iterable[int],
        vocab_size: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.eos_id, self.requires = eos_id, bool(required)
        unwritten = {*suppress, eos_id}
        matcher = Matcher([*required, *forbidden])
        symbols = sorted({token for phrase in (*required, *forbidden) for token in phrase} - unwritten)
        others = len(unwritten | set(symbols)) < vocab_size
        table = _table(matcher, symbols, others, len(required))
        left = _words_left(table.following, table.complete)
        self.symbols = torch.tensor(symbols, dtype=torch.int64, device=device)
        self.following = torch.tensor(table.following, dtype=torch.int64, device=device)  # (S, symbols + other)
        self.words_left = torch.tensor(left, dtype=torch.int64, device=device)  # (S,)
        self.column = torch.full((vocab_size,), len(symbols), dtype=torch.int64, device=device)
        self.column[self.symbols] = torch.arange(len(symbols), device=device)

    def advance(self, states: Tensor, words: Tensor) -> Tensor:
        """The states after one more word, int64, in the shape of both; a forbidden step leads to state 0."""
        return self.following[states, self.column[words]].clamp(min=0)

    def remaining(self, states: Tensor) -> Tensor:
        """The fewest words to be written until all required phrases have come, int64."""
        return self.words_left[states]

    def forbid(self, scores: Tensor, states: Tensor, left: int) -> Tensor:
        """Forbid, in scores float (R, V), what would write a forbidden phrase or leave no room for a required one.

        Args:
            scores: float (R, V).
            states: int64 (R,), of the sentences so far.
            left: how many tokens may be written yet, this one and eos included.
        """
        following = self.following[states]  # (R, symbols + other)
        allowed = following >= 0
        if self.requires:
            allowed &= self.words_left[following.clamp(min=0)] + 2 <= left  # this word, the rest, eos
        of_symbols = scores[:, self.symbols].masked_fill(~allowed[:, :-1], -torch.inf)
        ending = scores[:, self.eos_id]
        if self.requires:
            scores = scores.masked_fill(~allowed[:, -1:], -torch.inf)
            ending = ending.masked_fill(self.words_left[states] > 0, -torch.inf)
        scores = scores.index_copy(1, self.symbols, of_symbols)
        scores[:, self.eos_id] = ending
        return scores


class _Table:
    """Transitions between the states that can be reached; -1 where a step is forbidden.

    Attributes:
        following: for each state, the state after each symbol and, last, after any other word.
        complete: for each state, whether everything required has come.
    """

    def __init__(self) -> None:
        self.following: list[list[int]] = []
        self.complete: list[bool] = []


def _table(matcher: Matcher, symbols: list[int], others: bool, required: int) -> _Table:
    """Every state that can be reached; a state is a node of the matcher and the set of phrases that have come."""
    table, everything = _Table(), (1 << required) - 1
    number = {(matcher.root, 0): 0}
    waiting = deque(number)
    while waiting:
        node, met = waiting.popleft()
        row = []
        for symbol in symbols:
            target = matcher.step(node, symbol)
            hits = matcher.hits[target]
            if hits >> required:  # a forbidden phrase is complete
                row.append(-1)
                continue
            state = (target, met | (hits & everything))
            if state not in number:
                number[state] = len(number)
                waiting.append(state)
            row.append(number[state])
        rest = (matcher.root, met)
        if others and rest not in number:
            number[rest] = len(number)
            waiting.append(rest)
        table.following.append([*row, number[rest] if others else -1])
        table.complete.append(met == everything)
    return table


def _words_left(following: list[list[int]], complete: list[bool]) -> list[int]:
    """Steps from each state to the nearest complete one, NEVER where there is none: breadth first, backwards."""
    before: list[set[int]] = [set() for _ in following]
    for state, targets in enumerate(following):
        for target in targets:
            if target >= 0:
                before[target].add(state)
    left = [0 if done else NEVER for done in complete]
    waiting = deque(state for state, done in enumerate(complete) if done)
    while waiting:
        state = waiting.popleft()
        for earlier in before[state]:
            if left[earlier] == NEVER:
                left[earlier] = left[state] + 1
                waiting.append(earlier)
    return left
