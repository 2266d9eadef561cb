"""An approximate index of faiss beside the vectors: faster than exact search above a million images, and not the truth.

It covers the rows that there were when it was built. Rows that were added since are searched exactly, deleted ones are
left out, and all scores are those of the vectors. Only this module imports faiss, whose OpenMP does not always agree
with torch's on macOS (faiss issue 3401): there it has one thread.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from velm.errors import MissingPackageError, SearchError
from velm.search.exact import blocks, top_k
from velm.util import durable

__all__ = ["KINDS", "Approximate", "build"]

KINDS = ("hnsw", "ivfpq")
FOLDER, ABOUT = "ann", "ann.json"
BLOCK = 16_384
"""Rows that are added at a time."""
CANDIDATES = 10
"""Rows that faiss finds for each that is returned; their exact scores decide."""
LINKS, BUILD_WIDTH, WIDTH = 32, 80, 256
"""Of HNSW: links of a row, and nearest rows known while it is built and searched."""
TRAINING, CLUSTER, CODES = 65_536, 64, 256
"""Of IVFPQ: rows to train with, rows of a cluster, and values of a code, which is the fewest rows."""


def build(folder: Path, kind: str, about: dict[str, Any], parts: Sequence[np.ndarray]) -> None:
    """Write an approximate index of all rows.

    Args:
        folder: of the index.
        kind: 'hnsw' (a graph; in memory it takes 2 bytes a dimension and 260 a row) or 'ivfpq' (codes of an eighth of a
            byte a dimension in clusters; less is found).
        about: the content of index.json.
        parts: float16 (n, E) each.

    Raises:
        SearchError: the kind is unknown, or there are too few rows.
        MissingPackageError: faiss is not installed.
    """
    faiss = _faiss()
    _check_kind(kind)
    rows, dim = sum(map(len, parts)), about["dim"]
    everything = [np.ones(len(part), bool) for part in parts]
    if kind == "hnsw":
        index = faiss.IndexHNSWSQ(dim, faiss.ScalarQuantizer.QT_fp16, LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = BUILD_WIDTH
        index.train(np.zeros((1, dim), np.float32))
    else:
        if rows < CODES:
            raise SearchError(f"ivfpq needs at least {CODES} rows to train with; the index has {rows}. Search exactly.")
        clusters = max(1, min(4096, rows // CLUSTER))
        bytes_per_row = next(n for n in range(max(1, dim // 8), 0, -1) if dim % n == 0)
        index = faiss.IndexIVFPQ(faiss.IndexFlatIP(dim), dim, clusters, bytes_per_row, 8, faiss.METRIC_INNER_PRODUCT)
        index.train(_sample(parts, min(rows, TRAINING)))
    for _, block, _ in blocks(parts, everything, BLOCK):
        index.add(block.float().numpy())
    place = folder / FOLDER
    place.mkdir(exist_ok=True)
    with durable(place / f"{kind}.faiss") as file:
        faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))
    with durable(place / f"{kind}.json") as file:
        file.write(json.dumps({"generation": about["generation"], "rows": rows}).encode())


class Approximate:
    """An approximate index with the vectors that it is of.

    Attributes:
        kind: 'hnsw' or 'ivfpq'.
    """

    def __init__(
        self, kind: str, index: Any, covered: int, parts: Sequence[np.ndarray], live: Sequence[np.ndarray]
    ) -> None:
        self.kind, self._index, self._covered = kind, index, covered
        self._parts, self._live = parts, live
        self._starts = np.cumsum([0, *map(len, parts)])

    @classmethod
    def open(
        cls, folder: Path, kind: str, about: dict[str, Any], parts: Sequence[np.ndarray], live: Sequence[np.ndarray]
    ) -> Approximate:
        """What `build` wrote.

        Raises:
            SearchError: there is none of this kind, or rows have other numbers since a compaction.
            MissingPackageError: faiss is not installed.
        """
        faiss = _faiss()
        _check_kind(kind)
        write = f"Write it: velm index CHECKPOINT FOLDER --output {folder} --ann {kind}."
        try:
            known = json.loads((folder / FOLDER / f"{kind}.json").read_text(encoding="utf-8"))
            if known["generation"] != about["generation"]:
                raise SearchError(f"The approximate index {kind} of {folder} is older than its compaction. {write}")
            index = faiss.read_index(str(folder / FOLDER / f"{kind}.faiss"))
        except FileNotFoundError as error:
            raise SearchError(f"The index {folder} has no approximate index {kind}. {write}") from error
        except (ValueError, KeyError, RuntimeError) as error:  # faiss raises RuntimeError
            reason = str(error).splitlines()[0]
            raise SearchError(f"The approximate index {kind} of {folder} is damaged: {reason}. {write}") from error
        return cls(kind, index, known["rows"], parts, live)

    def search(self, queries: Tensor, k: int) -> list[list[tuple[int, float]]]:
        """As `velm.search.exact.top_k`, but some of the nearest may be missing."""
        faiss = _faiss()
        live = np.concatenate([*self._live, np.zeros(0, bool)])[: self._covered]
        chosen = faiss.IDSelectorBitmap(np.packbits(live, bitorder="little"))
        wanted = min(max(CANDIDATES * k, 100), max(1, int(live.sum())))
        if self.kind == "hnsw":
            options = faiss.SearchParametersHNSW(sel=chosen, efSearch=max(WIDTH, wanted))
        else:
            options = faiss.SearchParametersIVF(sel=chosen, nprobe=max(8, self._index.nlist // 16))
        _, found = self._index.search(queries.numpy(), wanted, params=options)
        newer = top_k(self._tail(self._parts), self._tail(self._live), queries, k)
        return [self._best(*each, k) for each in zip(queries, found, newer, strict=True)]

    def _tail(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The rows that were added since this index was built."""
        return [array[max(0, self._covered - start) :] for array, start in zip(arrays, self._starts, strict=False)]

    def _best(
        self, query: Tensor, found: np.ndarray, newer: list[tuple[int, float]], k: int
    ) -> list[tuple[int, float]]:
        """The best of the rows that faiss found, by their exact scores, and of newer rows."""
        rows = np.sort(found[found >= 0])
        of_part = np.searchsorted(self._starts, rows, side="right") - 1
        vectors = [self._parts[part][row - self._starts[part]] for part, row in zip(of_part, rows, strict=True)]
        scores: list[float] = []
        if vectors:
            scores = (torch.from_numpy(np.stack(vectors)).double() @ query.double()).float().tolist()
        both = [*zip(rows.tolist(), scores, strict=True), *((row + self._covered, score) for row, score in newer)]
        return sorted(both, key=lambda match: (-match[1], match[0]))[:k]


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise SearchError(f"Unknown approximate index {kind!r}; it is {' or '.join(KINDS)}.")


def _sample(parts: Sequence[np.ndarray], count: int) -> np.ndarray:
    """float32 (count, E): rows drawn with a fixed seed."""
    starts = np.cumsum([0, *map(len, parts)])
    rows = np.sort(np.random.default_rng(0).choice(int(starts[-1]), count, replace=False))
    drawn = [part[rows[(rows >= a) & (rows < a + len(part))] - a] for part, a in zip(parts, starts, strict=False)]
    return np.concatenate(drawn).astype(np.float32)


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise MissingPackageError(f"Approximate search needs faiss ({error}): pip install 'velm[search]'.") from error
    if sys.platform == "darwin":
        faiss.omp_set_num_threads(1)
    return faiss
