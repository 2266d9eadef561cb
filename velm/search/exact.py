"""Exact search in blocks: memory is bounded by a block, and ties are in the order of the rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["top_k"]

BLOCK = 4096
"""Rows that are scored at a time."""


def top_k(
    parts: Sequence[np.ndarray], live: Sequence[np.ndarray], queries: Tensor, k: int
) -> list[list[tuple[int, float]]]:
    """The k live rows with the largest dot products, best first, for each query.

    Args:
        parts: float16 (n, E) each.
        live: bool (n,) each; other rows are not found.
        queries: float (Q, E).
        k: at least 1; fewer are returned where there are fewer live rows.

    Returns:
        for each query (row, score), rows counted over all parts.
    """
    best = [_Best(k) for _ in range(len(queries))]
    queries = queries.float()
    first = 0
    for vectors, alive in zip(parts, live, strict=True):
        for start in range(0, len(vectors), BLOCK):
            block = torch.from_numpy(vectors[start : start + BLOCK])
            scores = queries @ block.float().T
            scores.masked_fill_(~torch.from_numpy(alive[start : start + BLOCK]), -torch.inf)
            for each, of_query in zip(best, scores.numpy(), strict=True):
                each.add(of_query, first + start)
        first += len(vectors)
    return [each.matches() for each in best]


class _Best:
    """The best rows of one query so far, sorted by falling score and rising row."""

    def __init__(self, k: int) -> None:
        self.k = k
        self.rows, self.scores = np.zeros(0, np.int64), np.zeros(0, np.float32)

    def add(self, scores: np.ndarray, first: int) -> None:
        """Add float32 (n,) of the rows from `first`, which come after all earlier ones; -inf: not a row."""
        full = len(self.scores) == self.k
        new = np.flatnonzero(scores > (self.scores[-1] if full else -np.inf))  # a later tie changes nothing
        if not len(new):
            return
        if len(new) > self.k:  # only these can be among the best; ties with the last of them stay
            new = new[scores[new] >= np.partition(scores[new], -self.k)[-self.k]]
        rows, all_scores = np.concatenate([self.rows, new + first]), np.concatenate([self.scores, scores[new]])
        order = np.lexsort((rows, -all_scores))[: self.k]
        self.rows, self.scores = rows[order], all_scores[order]

    def matches(self) -> list[tuple[int, float]]:
        return list(zip(self.rows.tolist(), self.scores.tolist(), strict=True))
