"""Exact search in blocks: memory is bounded by a block, and ties are in the order of the rows.

Products of matrices are a filter: those of a few queries in half precision, as the vectors are stored, which takes a
third of the time or less, those of more queries in float32. Their last digits depend on a row's place in the block, so
every row that may be among the best by them is scored again in float64 and rounded: equal vectors have equal scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["blocks", "top_k"]

BLOCK = 4096
"""Rows that are scored at a time in float32."""
HALF_BLOCK = 16_384
"""Rows that are scored at a time in half precision."""
FEW = 4
"""Queries, up to which half precision is faster."""
HALF_MARGIN = 1e-3
"""Error of a product in half precision with sums in float32: query and result are rounded, by 2^-11 and 2^-12."""
MARGIN = 1e-5
"""Error of a product in float32."""


def top_k(
    parts: Sequence[np.ndarray], live: Sequence[np.ndarray], queries: Tensor, k: int
) -> list[list[tuple[int, float]]]:
    """The k live rows with the largest dot products, best first, for each query.

    Args:
        parts: float16 (n, E) each, L2-normalised or zero.
        live: bool (n,) each; other rows are not found.
        queries: float (Q, E), L2-normalised.
        k: at least 1; fewer are returned where there are fewer live rows.

    Returns:
        for each query (row, score), rows counted over all parts.
    """
    best = [_Best(k) for _ in range(len(queries))]
    queries = queries.float()
    half, exact = queries.half(), queries.double()
    few = len(queries) <= FEW and _sums_in_float32(parts, half)
    for first, block, alive in blocks(parts, live, HALF_BLOCK if few else BLOCK):
        scores = torch.stack([block.mv(query) for query in half]).float() if few else queries @ block.float().T
        scores.masked_fill_(~alive, -torch.inf)
        for query, of_query, each in zip(exact, scores, best, strict=True):
            rows = each.candidates(of_query, HALF_MARGIN if few else MARGIN)
            each.add((block[rows].double() @ query).float(), first + rows)
    return [each.matches() for each in best]


def blocks(parts: Sequence[np.ndarray], live: Sequence[np.ndarray], size: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(first row, vectors float16 (b, E), live bool (b,)) of all rows; views, nothing is copied."""
    first = 0
    for vectors, alive in zip(parts, live, strict=True):
        for start in range(0, len(vectors), size):
            yield (
                first + start,
                torch.from_numpy(vectors[start : start + size]),
                torch.from_numpy(alive[start : start + size]),
            )
        first += len(vectors)


def _sums_in_float32(parts: Sequence[np.ndarray], queries: Tensor) -> bool:
    """Whether half-precision products here are as close to those in float32 as HALF_MARGIN says, by a sample."""
    sample = next((torch.from_numpy(part[:64]) for part in parts if len(part)), None)
    if sample is None or not len(queries):
        return False
    return bool(((sample @ queries[0]).float() - sample.float() @ queries[0].float()).abs().max() < HALF_MARGIN / 2)


class _Best:
    """The best rows of one query so far, sorted by falling score and rising row."""

    def __init__(self, k: int) -> None:
        self.k = k
        self.rows, self.scores = np.zeros(0, np.int64), np.zeros(0, np.float32)

    @property
    def threshold(self) -> float:
        """The score below which a row is not among the best."""
        return float(self.scores[-1]) if len(self.scores) == self.k else -np.inf

    def candidates(self, scores: Tensor, margin: float) -> Tensor:
        """int64, the places of the scores (float (b,), known up to the margin) that may be among the best."""
        lowest = self.threshold - margin
        if len(scores) > self.k:
            lowest = max(lowest, float(scores.topk(self.k).values[-1]) - 2 * margin)
        return ((scores >= lowest) & (scores > -torch.inf)).nonzero()[:, 0]

    def add(self, scores: Tensor, rows: Tensor) -> None:
        """Add float (n,) of rows int64 (n,), which come after all earlier ones."""
        all_rows = np.concatenate([self.rows, rows.numpy()])
        all_scores = np.concatenate([self.scores, scores.numpy()])
        order = np.lexsort((all_rows, -all_scores))[: self.k]
        self.rows, self.scores = all_rows[order], all_scores[order]

    def matches(self) -> list[tuple[int, float]]:
        return list(zip(self.rows.tolist(), self.scores.tolist(), strict=True))
