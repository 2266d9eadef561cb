"""Which phrases end at the token just read: the automaton of Aho and Corasick (1975, doi 10.1145/360825.360855)."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

__all__ = ["Matcher"]


class Matcher:
    """A trie of phrases with, for every node, the longest proper suffix that is a node too.

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
        waiting = deque(self.children[self.root].values())
        while waiting:
            node = waiting.popleft()
            self.hits[node] |= self.hits[self.suffix[node]]
            for token, child in self.children[node].items():
                self.suffix[child] = self.step(self.suffix[node], token)
                waiting.append(child)

    def step(self, node: int, token: int) -> int:
        """The node after a token: of all nodes that the sentence ends with, the longest."""
        while token not in self.children[node]:
            if node == self.root:
                return self.root
            node = self.suffix[node]
        return self.children[node][token]
