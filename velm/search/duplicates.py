"""Groups of images that look the same: all pairs above a threshold, in blocks, joined by union-find."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import normalize

from velm.errors import SearchError
from velm.search.exact import blocks
from velm.search.index import Index
from velm.search.store import read_rows

__all__ = ["KEPT", "THRESHOLD", "Copy", "Group", "find_duplicates"]

THRESHOLD = 0.97
"""Cosine of two images' embeddings from which they are duplicates; cosines depend on the model."""
BLOCK = 2048
"""Rows that are compared with as many others at a time."""
EQUAL = 1e-6
"""Error of a cosine in float32."""
KEPT = "the most pixels, then the most bytes, then the first path"
"""The image of a group that is worth keeping."""


class Copy(NamedTuple):
    """An image of a group.

    Attributes:
        path, row: as in `velm.search.Match`.
        width, height: in pixels; 0 if unknown.
        size: in bytes.
        score: cosine with the image that is kept.
    """

    path: str
    row: int
    width: int
    height: int
    size: int
    score: float


class Group(NamedTuple):
    """Images that are joined by pairs of duplicates; two of them need not be a pair themselves.

    Attributes:
        kept: the image with KEPT.
        others: by falling score.
    """

    kept: Copy
    others: list[Copy]


def find_duplicates(
    index: Index, threshold: float = THRESHOLD, progress: Callable[[int, int], None] | None = None
) -> list[Group]:
    """The groups of duplicates, the largest first. Files of equal content are duplicates at every threshold.

    Args:
        index: of the images.
        threshold: cosine in (0, 1] from which two images are duplicates.
        progress: called with (rows compared, all rows).

    Raises:
        SearchError: the threshold is out of range.
    """
    if not 0 < threshold <= 1:
        raise SearchError(f"threshold {threshold} is no cosine of duplicates; it is above 0 and at most 1.")
    parent = np.arange(index.rows)
    tables = [read_rows(index.folder, part) for part in index.about["parts"]]
    columns = {
        name: [value for table in tables for value in table.column(name).to_pylist()]
        for name in ("hash", "width", "height", "size")
    }
    live = np.concatenate([*index.live, np.zeros(0, bool)])
    first: dict[str, int] = {}
    for row in np.flatnonzero(live).tolist():
        _join(parent, row, first.setdefault(columns["hash"][row], row))
    for start, left, left_live in blocks(index.vectors, index.live, BLOCK):
        ours = normalize(left.float()).masked_fill_(~left_live[:, None], 0)
        for other, right, right_live in blocks(index.vectors, index.live, BLOCK):
            if other < start:
                continue
            scores = ours @ normalize(right.float()).masked_fill_(~right_live[:, None], 0).T
            for i, j in (scores >= threshold - EQUAL).nonzero().tolist():
                _join(parent, start + i, other + j)
        if progress is not None:
            progress(start + len(left), index.rows)
    members: dict[int, list[int]] = defaultdict(list)
    for row in np.flatnonzero(live).tolist():
        members[_root(parent, row)].append(row)
    groups = [_group(index, rows, columns) for rows in members.values() if len(rows) > 1]
    return sorted(groups, key=lambda group: (-len(group.others), group.kept.path))


def _group(index: Index, rows: list[int], columns: dict[str, list]) -> Group:
    def worth(row: int) -> tuple[int, int, str]:
        return -columns["width"][row] * columns["height"][row], -columns["size"][row], index.name(row)

    kept, *others = sorted(rows, key=worth)
    vectors = torch.stack([torch.from_numpy(index.vector(row)) for row in (kept, *others)]).float()
    scores = normalize(vectors) @ normalize(vectors[0], dim=0)
    copies = [
        Copy(index.name(row), row, columns["width"][row], columns["height"][row], columns["size"][row], score)
        for row, score in zip((kept, *others), scores.clamp(-1, 1).tolist(), strict=True)
    ]
    return Group(copies[0], sorted(copies[1:], key=lambda copy: (-copy.score, copy.path)))


def _root(parent: np.ndarray, row: int) -> int:
    while parent[row] != row:
        parent[row] = parent[parent[row]]  # halves the path
        row = int(parent[row])
    return row


def _join(parent: np.ndarray, first: int, second: int) -> None:
    low, high = sorted((_root(parent, first), _root(parent, second)))
    parent[high] = low
