"""Columns of text in Arrow's chunks: looked at a slice at a time, so that nothing is ever there twice."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["gathered", "has_text", "same_text", "slices"]

SLICE = 2**16  # rows


def slices(column: pa.ChunkedArray | pa.Array) -> Iterator[tuple[int, pa.Array]]:
    """Parts of a column, each with the place of its first row."""
    start = 0
    for chunk in column.chunks if isinstance(column, pa.ChunkedArray) else [column]:
        for begin in range(0, len(chunk), SLICE):
            yield start + begin, chunk.slice(begin, SLICE)
        start += len(chunk)


def has_text(column: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray:
    """bool, False where a text is missing or blank."""
    lengths = (pc.binary_length(pc.utf8_trim_whitespace(part)) for _, part in slices(column))
    return pa.chunked_array([pc.fill_null(pc.greater(length, 0), False) for length in lengths], pa.bool_())


def gathered(column: pa.ChunkedArray, rows: np.ndarray) -> pa.Array:
    """The values of some rows, in their order; `ChunkedArray.take` would make the whole column one chunk first."""
    ends = np.cumsum([len(chunk) for chunk in column.chunks])
    chunk_of = np.searchsorted(ends, rows, side="right")
    order = np.argsort(chunk_of, kind="stable")
    taken = [pa.array([], column.type)]
    for number in np.unique(chunk_of).tolist():
        chunk = column.chunk(number)
        mine = rows[order][chunk_of[order] == number]
        taken.append(chunk.take(pa.array(mine - (ends[number] - len(chunk)))))
    return pa.concat_arrays(taken).take(pa.array(np.argsort(order, kind="stable")))


def same_text(column: pa.ChunkedArray, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """bool (n,), whether the texts of two rows are the same; missing ones are."""
    same = [np.zeros(0, bool)]
    for start in range(0, len(rows), SLICE):
        one, other = (gathered(column, each[start : start + SLICE]) for each in (rows, others))
        both = pc.and_(one.is_null(), other.is_null())
        equal = pc.or_(pc.fill_null(pc.equal(one, other), False), both)
        same.append(equal.to_numpy(zero_copy_only=False))
    return np.concatenate(same)
