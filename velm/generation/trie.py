"""A closed set of answers as a trie: after each token, only tokens that lead to an answer are allowed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


class Trie:
    """Nodes are prefixes of answers, node 0 the empty one; an answer is complete with eos.

    The edges are sorted by node and token: the edges of a node are adjacent, and one edge is found by bisection. Memory
    grows with the answers, not with the vocabulary.

    Args:
        answers: token sequences without eos, none empty.
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

    def advance(self, states: Tensor, tokens: Tensor) -> Tensor:
        """The nodes after one more token, int64, elementwise; a token without an edge leads to node 0."""
        key = states * self.vocab_size + tokens
        edge = torch.searchsorted(self.keys, key).clamp(max=len(self.keys) - 1)
        return self.targets[edge].where(self.keys[edge] == key, 0)

    def forbid(self, scores: Tensor, states: Tensor, left: int) -> Tensor:
        """Set all scores float (R, V) to -inf except those of tokens that lead from node states, int64 (R,), onwards.

        `left` is unused: every answer fits.
        """
        edge = self.first[states][:, None] + torch.arange(self.widest, device=states.device)
        exists = edge < self.first[states + 1][:, None]
        tokens = self.tokens[edge.clamp(max=len(self.tokens) - 1)]
        rows, columns = exists.nonzero(as_tuple=True)
        allowed = tokens[rows, columns]
        return torch.full_like(scores, -torch.inf).index_put((rows, allowed), scores[rows, allowed])
