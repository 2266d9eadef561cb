"""Required and forbidden phrases as one automaton that reads a text token by token.

The matcher of Aho and Corasick (1975, doi 10.1145/360825.360855) finds all phrases at once; a state of the automaton is
a node of the matcher with one bit per required phrase that has occurred. Each state knows the least number of tokens
until all required phrases are complete, so that a search never reaches a dead end: a token is allowed only if the
required phrases still fit after it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

MOST_REQUIRED = 10
"""Most required phrases at once: the automaton has up to 2 ** MOST_REQUIRED states per token of a phrase."""

NEVER = 1 << 30
"""`Phrases.remaining` of a state from which the required phrases cannot all be completed."""

Phrase = Sequence[int]


class Phrases:
    """Automaton over required and forbidden phrases; state 0 is the empty text.

    A phrase counts wherever its tokens are adjacent, also where it overlaps another.

    Args:
        eos_id: the end token, allowed once all required phrases have occurred.

    Attributes:
        requires: whether there are required phrases.
        symbols: int64 (K,), the tokens of all phrases.
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
        never = {*suppress, eos_id}
        matcher = Matcher([*required, *forbidden])
        symbols = sorted({token for phrase in (*required, *forbidden) for token in phrase} - never)
        others = len(never | set(symbols)) < vocab_size
        following, complete = _transitions(matcher, symbols, others, len(required))
        self.symbols = torch.tensor(symbols, dtype=torch.int64, device=device)
        self.following = torch.tensor(following, dtype=torch.int64, device=device)  # (S, K + 1), last: other tokens
        self.tokens_left = torch.tensor(_steps_to_complete(following, complete), dtype=torch.int64, device=device)
        self.column = torch.full((vocab_size,), len(symbols), dtype=torch.int64, device=device)
        self.column[self.symbols] = torch.arange(len(symbols), device=device)

    def advance(self, states: Tensor, tokens: Tensor) -> Tensor:
        """The states after one more token, int64, elementwise; a forbidden step leads to state 0."""
        return self.following[states, self.column[tokens]].clamp(min=0)

    def remaining(self, states: Tensor) -> Tensor:
        """The least number of tokens until all required phrases have occurred, int64; NEVER if impossible."""
        return self.tokens_left[states]

    def forbid(self, scores: Tensor, states: Tensor, left: int) -> Tensor:
        """Set the scores of tokens to -inf that complete a forbidden phrase or leave no room for a required one.

        Args:
            scores: float (R, V).
            states: int64 (R,), of the tokens so far.
            left: how many tokens may still be generated, this one and eos included.
        """
        following = self.following[states]  # (R, K + 1)
        allowed = following >= 0
        if self.requires:
            allowed &= self.tokens_left[following.clamp(min=0)] + 2 <= left  # this token, the rest, eos
        of_symbols = scores[:, self.symbols].masked_fill(~allowed[:, :-1], -torch.inf)
        ending = scores[:, self.eos_id]
        if self.requires:
            scores = scores.masked_fill(~allowed[:, -1:], -torch.inf)
            ending = ending.masked_fill(self.tokens_left[states] > 0, -torch.inf)
        scores = scores.index_copy(1, self.symbols, of_symbols)
        scores[:, self.eos_id] = ending
        return scores


class Matcher:
    """A trie of phrases in which every node knows its longest proper suffix that is also a node.

    Args:
        phrases: token sequences, none empty.

    Attributes:
        root: the node before the first token.
        hits: for each node, the phrases that end there, as bits: phrase i is 1 << i.
    """

    root = 0

    def __init__(self, phrases: Sequence[Sequence[int]]) -> None:
        self.children: list[dict[int, int]] = [{}]
        self.hits = [0]
        for bit, phrase in enumerate(phrases):
            node = self.root
            for token in phrase:
                if token not in self.children[node]:
                    self.children[node][token] = len(self.children)
                    self.children.append({})
                    self.hits.append(0)
                node = self.children[node][token]
            self.hits[node] |= 1 << bit
        self.suffix = [self.root] * len(self.children)
        queue = deque(self.children[self.root].values())
        while queue:
            node = queue.popleft()
            self.hits[node] |= self.hits[self.suffix[node]]
            for token, child in self.children[node].items():
                self.suffix[child] = self.step(self.suffix[node], token)
                queue.append(child)

    def step(self, node: int, token: int) -> int:
        """The node after a token: the longest one that is a suffix of the tokens so far."""
        while token not in self.children[node]:
            if node == self.root:
                return self.root
            node = self.suffix[node]
        return self.children[node][token]


def _transitions(
    matcher: Matcher, symbols: list[int], others: bool, required: int
) -> tuple[list[list[int]], list[bool]]:
    """All reachable states: a node of the matcher with the set of required phrases that have occurred.

    Returns:
        for each state, the state after each symbol and, last, after any other token, -1 where the step is forbidden;
        and whether all required phrases have occurred.
    """
    following, complete, all_met = [], [], (1 << required) - 1
    number = {(matcher.root, 0): 0}
    queue = deque(number)

    def index(state: tuple[int, int]) -> int:
        if state not in number:
            number[state] = len(number)
            queue.append(state)
        return number[state]

    while queue:
        node, met = queue.popleft()
        row = []
        for symbol in symbols:
            target = matcher.step(node, symbol)
            hits = matcher.hits[target]
            row.append(-1 if hits >> required else index((target, met | (hits & all_met))))
        following.append([*row, index((matcher.root, met)) if others else -1])
        complete.append(met == all_met)
    return following, complete


def _steps_to_complete(following: list[list[int]], complete: list[bool]) -> list[int]:
    """Steps from each state to the nearest complete one, NEVER if none is reachable: breadth first, backwards."""
    predecessors: list[set[int]] = [set() for _ in following]
    for state, targets in enumerate(following):
        for target in targets:
            if target >= 0:
                predecessors[target].add(state)
    steps = [0 if done else NEVER for done in complete]
    queue = deque(state for state, done in enumerate(complete) if done)
    while queue:
        state = queue.popleft()
        for earlier in predecessors[state]:
            if steps[earlier] == NEVER:
                steps[earlier] = steps[state] + 1
                queue.append(earlier)
    return steps
