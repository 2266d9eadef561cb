"""How much of exact search an approximate index finds, on queries of the index's own."""

from __future__ import annotations

import numpy as np
import torch

from velm.search.index import Index

__all__ = ["recall_of"]

QUERIES, NEAREST = 200, 10


def recall_of(index: Index, ann: str) -> float:
    """Share of the NEAREST images of QUERIES of its own images, themselves left out, that `ann` finds; nan without any.

    Raises:
        SearchError, MissingPackageError: see `Index.search`.
    """
    live = np.flatnonzero(np.concatenate([*index.live, np.zeros(0, bool)]))
    rows = np.random.default_rng(0).permutation(live)[:QUERIES].tolist()
    found = wanted = 0
    for start in range(0, len(rows), 50):
        some = rows[start : start + 50]
        queries = torch.stack([torch.from_numpy(index.vector(row)) for row in some]).float()
        pairs = zip(some, index.search(queries, NEAREST + 1), index.search(queries, NEAREST + 1, ann=ann), strict=True)
        for row, exact, approximate in pairs:
            nearest = {match.row for match in exact if match.row != row}
            found += len(nearest & {match.row for match in approximate})
            wanted += len(nearest)
    return found / wanted if wanted else float("nan")
