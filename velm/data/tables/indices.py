"""Indices from samples to records and images that take no memory where they say what is plain anyway."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import numpy as np

from velm.data.tables.sorting import index_type

__all__ = ["Repeats", "as_array", "first_shown"]


class Repeats(Sequence[int]):
    """Every place as often as it has texts: counts 2, 0, 1 are 0, 0, 2.

    Args:
        counts: int (records,).
    """

    def __init__(self, counts: np.ndarray) -> None:
        self._length = int(counts.sum())
        ends = np.cumsum(counts, dtype=index_type(self._length))
        self.starts = (ends - counts).astype(ends.dtype)  # int (records,), where each begins

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> list[int]: ...
    def __getitem__(self, index: Any) -> int | list[int]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -self._length <= index < self._length:
            raise IndexError(f"sample {index} of {self._length}")
        return int(np.searchsorted(self.starts, index % self._length, side="right")) - 1

    def spread(self, values: np.ndarray) -> np.ndarray:
        """(samples,): the value of each one's place, of values (records,)."""
        return np.repeat(values, np.diff(self.starts, append=self.starts.dtype.type(self._length)))


def first_shown(images: np.ndarray | None, records: int) -> Sequence[int] | np.ndarray:
    """(records,), the first record that shows the same image; a range where each shows its own.

    Args:
        images: int (records,), equal where two show the same one; None, each its own.
    """
    if images is None or np.array_equal(images, np.arange(records, dtype=index_type(records))):
        return range(records)
    _, first, same = np.unique(images, return_index=True, return_inverse=True)
    return first.astype(index_type(records))[same]


def as_array(index: Sequence[int] | np.ndarray) -> np.ndarray:
    """int (n,), of a range without a Python number for each."""
    if isinstance(index, range):
        return np.arange(index.start, index.stop, index.step, dtype=index_type(index.stop))
    return np.asarray(index)
