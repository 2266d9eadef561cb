"""A closed set of answers as a trie: after each token, only what leads to an answer may follow."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

__all__ = ["Trie"]


class Trie:
    """Nodes are beginnings of answers, node 0 the empty one; an answer is complete with eos.

    The edges lie sorted by node and token, so that those of a node are neighbours and one is found by bisection: the
    size is that of the answers, whatever the vocabulary's.

    Args:
        answers: token sequences without eos, none empty.
        eos_id: the token that ends a sentence.
        vocab_size: number of tokens.
        device: where scores will be.
    """

    def __init__(
        self, answers: Iterable[Sequence[int]], *, eos_id: int, vocab_size: int, device: torch.device | str = "cpu"
    ) -> None:
        edges: dict[tuple[int, int], int] = {}
        for answer in answers:
            node = 0
            for token in (*answer, eos_id):
                node = edges.setdefault((node, token), len(edges) + 1)
        ordered = sorted(edges)
        nodes = torch.tensor([node for node, _ in ordered], dtype=torch.int64)
        self.vocab_size = vocab_size
        self.tokens = torch.tensor([token for _, token in ordered], dtype=torch.int64, device=device)
        self.targets = torch.tensor([edges[edge] for edge in ordered], dtype=torch.int64, device=device)
        self.keys = nodes.to(device) * vocab_size + self.tokens
        self.first = torch.searchsorted(nodes, torch.arange(len(edges) + 2)).to(device)
        self.widest = int((self.first[1:] - self.first[:-1]).max())

    def advance(self, states: Tensor, words: Tensor) -> Tensor:
        """The nodes after one more word, int64, in the shape of both; a word that leads nowhere leads to node 0."""
        wanted = states * self.vocab_size + words
        edge = torch.searchsorted(self.keys, wanted).clamp(max=len(self.keys) - 1)
        return self.targets[edge].where(self.keys[edge] == wanted, 0)

    def forbid(self, scores: Tensor, states: Tensor, left: int) -> Tensor:
        """Forbid, in scores float (R, V), what does not lead from the nodes int64 (R,) to an answer.

        `left` is not needed: the answers fit.
        """
        edge = self.first[states][:, None] + torch.arange(self.widest, device=states.device)
        mine = edge < self.first[states + 1][:, None]
        tokens = self.tokens[edge.clamp(max=len(self.tokens) - 1)]
        rows, places = mine.nonzero(as_tuple=True)
        kept = tokens[rows, places]
        return torch.full_like(scores, -torch.inf).index_put((rows, kept), scores[rows, kept])
