"""Columns of text in Arrow's chunks: looked at a slice at a time, so that nothing is ever there twice."""

from __future__ import annotations

from collections.abc import Iterator
from mmap import mmap
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["compact", "gathered", "has_text", "same_text", "slices", "text_buffers"]

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


def compact(column: pa.ChunkedArray) -> pa.Array:
    """A column in one piece, in pages of its own and no more of them than it needs.

    Builders reserve more than they fill, and pools keep what they are given back; these pages belong to neither, and
    are shared by all processes that are forked.

    Args:
        column: string or of numbers, at most 2 GiB.
    """
    if pa.types.is_integer(column.type) and not column.null_count:
        numbers = _pages(len(column), column.type.to_pandas_dtype())
        numbers[:] = column.to_numpy()
        return pa.array(numbers)
    if not pa.types.is_string(column.type) or column.null_count:
        return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    ends, data = _pages(len(column) + 1, np.int32), _pages(pc.sum(pc.binary_length(column)).as_py() or 0, np.uint8)
    row, end = 0, 0
    for chunk in column.chunks:
        bounds, content = text_buffers(chunk)
        data[end : end + len(content)] = content
        ends[row + 1 : row + len(bounds)] = bounds[1:] + end
        row, end = row + len(chunk), end + len(content)
    return pa.StringArray.from_buffers(len(column), pa.py_buffer(ends), pa.py_buffer(data))


def _pages(count: int, kind: Any) -> np.ndarray:
    """Zeros, (count,)."""
    return np.frombuffer(mmap(-1, max(count, 1) * np.dtype(kind).itemsize), kind)[:count]


def text_buffers(chunk: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Where texts begin and the last ends, int (rows + 1,) from 0, and the bytes of all of them, uint8."""
    _, offsets, content = chunk.buffers()
    kind = np.int64 if pa.types.is_large_string(chunk.type) else np.int32
    bounds = np.zeros(1, kind) if offsets is None else np.frombuffer(offsets, kind)
    bounds = bounds[chunk.offset : chunk.offset + len(chunk) + 1]
    data = np.frombuffer(b"" if content is None else content, np.uint8)[bounds[0] : bounds[-1]]
    return bounds - bounds[0], data
