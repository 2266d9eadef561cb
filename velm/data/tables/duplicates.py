"""Which rows of a column have the same text, found by hashes: no table of all the different texts is built."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from velm.data.tables.columns import same_text, slices, text_buffers
from velm.data.tables.sorting import index_type, parts

__all__ = ["first_alike", "text_hashes"]


def first_alike(column: pa.ChunkedArray) -> np.ndarray | None:
    """int (rows,), the first row with the same text, whatever their order; None where all are different.

    Equal hashes are compared text by text. Missing texts are the same.
    """
    if column.null_count:
        column = pa.chunked_array([pc.fill_null(chunk, "") for chunk in column.chunks], column.type)
    first = _first_of_hash(text_hashes(column))
    if first is None:
        return None
    later = np.flatnonzero(first != np.arange(len(first), dtype=first.dtype))
    if same_text(column, later, first[later]).all():
        return first
    return _first_of_text(column)


def _first_of_hash(hashes: np.ndarray) -> np.ndarray | None:
    first: np.ndarray | None = None
    for places in parts(hashes):
        order = places[np.argsort(hashes[places], kind="stable")]
        new = np.ones(len(order), bool)
        new[1:] = hashes[order[1:]] != hashes[order[:-1]]
        if new.all():
            continue
        if first is None:
            first = np.arange(len(hashes), dtype=index_type(len(hashes)))
        first[order] = order[np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))]
    return first


def _first_of_text(column: pa.ChunkedArray) -> np.ndarray:
    """By the texts themselves, where two of them share a hash: all there are at once."""
    codes = np.concatenate([chunk.indices.to_numpy() for chunk in column.dictionary_encode().chunks])
    first: np.ndarray = np.unique(codes, return_index=True)[1][codes]
    return first.astype(index_type(len(first)))


def text_hashes(column: pa.ChunkedArray) -> np.ndarray:
    """uint64 (rows,): each byte times a random number of its place, added up (Carter and Wegman's multilinear hash).

    Args:
        column: string or large_string, nothing missing.
    """
    hashes = np.empty(len(column), np.uint64)
    for start, part in slices(column):
        ends, data = text_buffers(part)
        lengths = np.diff(ends)
        place = np.arange(len(data), dtype=ends.dtype) - np.repeat(ends[:-1], lengths)
        weights = _weights(max(int(lengths.max()), 1).bit_length())
        sums = np.zeros(len(data) + 1, np.uint64)
        np.cumsum((data.astype(np.uint64) + np.uint64(1)) * weights[place], out=sums[1:])
        hashes[start : start + len(part)] = sums[ends[1:]] - sums[ends[:-1]]
    return hashes


@lru_cache(maxsize=4)
def _weights(bits: int) -> np.ndarray:
    """uint64 (2 ** bits,), odd; shorter ones are the beginning of longer ones."""
    return np.random.default_rng(0).integers(0, 2**64, 2**bits, dtype=np.uint64) | np.uint64(1)
