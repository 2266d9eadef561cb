"""Records kept in Arrow columns, and what the file formats ask of their columns and images."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from velm.data.bad_samples import BadSample, places
from velm.data.base import EncodedImage, Record, Records
from velm.data.tables.columns import slices
from velm.data.tables.rows import ROW, Odd, named_faults, parted
from velm.data.tables.sorting import index_type, stable_order
from velm.errors import DataError
from velm.util import did_you_mean

__all__ = ["TableRecords", "existing_path", "flattened", "opened"]


class TableRecords(Records):
    """The records of a split, rows of one image together, images in the order of their first row."""

    def __init__(
        self,
        columns: dict[str, pa.ChunkedArray | pa.Array],
        image_index: np.ndarray | None,
        root: str = "",
        encoded: Callable[[int], EncodedImage] | None = None,
    ) -> None:
        """Keep the columns; nothing is read.

        Args:
            columns: 'text', and 'image', 'image_id', 'target', 'weight' where there are.
            image: int (rows,), which image a row shows, numbered in the order they come; None, each its own.
            root: folder that the paths of 'image' start from.
            encoded: gives images that are no files of their own, by the number in `ROW` less one; 'image' then only
                says by null which rows have none.
        """
        self._columns, self._root, self._encoded = columns, root, encoded
        self._order: np.ndarray | None = None  # rows by image; None as they come
        self._ends: np.ndarray | None = None  # where each image's end; None where each has one
        self._image_indices: np.ndarray | None = None
        self._length = rows = len(columns["text"])
        if image_index is not None and len(image_index) and int(image_index.max()) + 1 < rows:
            self._ends = np.cumsum(np.bincount(image_index), dtype=index_type(rows))
            self._length = len(self._ends)
            if (image_index[1:] < image_index[:-1]).any():
                self._order = stable_order(image_index)
        self.bad_samples: list[BadSample] = []  # what was left out, and what is known to be bad of the rest

    @property
    def text_counts(self) -> np.ndarray:
        """int (records,), the number of texts of each."""
        if self._ends is None:
            return np.broadcast_to(np.int32(1), self._length)
        return np.diff(self._ends, prepend=self._ends.dtype.type(0))

    @property
    def image_indices(self) -> np.ndarray:
        """int (records,), equal where two records show the same image."""
        return (
            np.arange(self._length, dtype=index_type(self._length))
            if self._image_indices is None
            else self._image_indices
        )

    @image_indices.setter
    def image_indices(self, image_indices: np.ndarray) -> None:
        self._image_indices = image_indices

    @property
    def nbytes(self) -> int:
        """Bytes of all that is kept in memory: the columns, and the arrays that find an image's rows in them."""
        arrays = (array for array in (self._order, self._ends, self._image_indices) if array is not None)
        return sum(column.nbytes for column in self._columns.values()) + sum(array.nbytes for array in arrays)

    def __len__(self) -> int:
        return self._length

    def record(self, place: int) -> Record:
        rows = self._rows(place)
        image = self._value("image", rows[0])
        return Record(
            image_id=self._value("image_id", rows[0]) or image or f"row {self._value(ROW, rows[0])}",
            image=self._image(image, rows[0]) if image else None,
            texts=tuple(self._value("text", row) for row in rows),
            targets=self._values("target", rows),
            weights=self._values("weight", rows),
        )

    def _values(self, column: str, rows: Sequence[int]) -> tuple[Any, ...] | None:
        return tuple(self._value(column, row) for row in rows) if column in self._columns else None

    def _rows(self, place: int) -> Sequence[int]:
        if self._ends is None:
            return (place,)
        start, end = int(self._ends[place - 1]) if place else 0, int(self._ends[place])
        rows: Sequence[int] = range(start, end) if self._order is None else self._order[start:end].tolist()
        return rows

    def _image(self, image: str, row: int) -> str | EncodedImage:
        return os.path.join(self._root, image) if self._encoded is None else self._encoded(self._value(ROW, row) - 1)

    def _value(self, column: str, row: int) -> Any:
        values = self._columns.get(column)
        return None if values is None else values[row].as_py()


def existing_path(path: str) -> str:
    """The path itself, or an error that names the nearest file of its folder."""
    if os.path.exists(path):
        return path
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        raise DataError(f"There is no file {path!r}; its folder {folder!r} does not exist either.")
    raise DataError(f"There is no file {path!r}.{did_you_mean(os.path.basename(path), os.listdir(folder))}")


def whole(column: pa.ChunkedArray) -> pa.Array:
    """A column in one piece."""
    joined = column.combine_chunks()
    return joined if isinstance(joined, pa.Array) else pa.concat_arrays(joined.chunks)


def distinct(column: pa.ChunkedArray | pa.Array) -> Iterator[str]:
    """The texts of a column that are not blank, some of them more than once."""
    for _, part in slices(column):
        yield from (value for value in pc.unique(part).to_pylist() if value and not value.isspace())


def codes(column: pa.Array) -> np.ndarray:
    """int (rows,), equal where the texts are equal, numbered in order of appearance."""
    return column.dictionary_encode(null_encoding="encode").indices.to_numpy(zero_copy_only=False)


def row_names(numbers: np.ndarray | pa.Array, present: np.ndarray | None = None) -> pa.Array:
    """large_string (rows,), 'row 7', where `present`, bool (rows,), is True; else null."""
    names = pc.binary_join_element_wise(
        pa.scalar("row", pa.large_string()),
        pc.cast(pa.array(numbers), pa.large_string()),
        pa.scalar(" ", pa.large_string()),
    )
    return names if present is None else pc.if_else(pa.array(present), names, pa.scalar(None, pa.large_string()))


def flattened(table: pa.Table, file: str, root: str | None = None) -> tuple[pa.Table, list[BadSample]]:
    """One row a sentence: lists of them, and of what is beside them, are opened; rows without any are taken out."""
    kept, odd = opened(table, file)
    return kept, named_faults(odd, [kept], file, root)


def opened(table: pa.Table, file: str) -> tuple[pa.Table, Odd]:
    """As `flattened`, with the rows that were taken out as they are."""
    beside = [n for n in ("text", "target", "weight") if n in table.column_names]
    lists = [n for n in beside if _is_list(table[n].type)]
    if not lists:
        return parted(table, {})
    if len(lists) < len(beside):
        raise DataError(f"{file!r}: {' and '.join(beside)} must all be lists or none; only {', '.join(lists)} is one.")
    lengths = [pc.fill_null(pc.list_value_length(table[n]), 0) for n in lists]
    causes = dict.fromkeys(places(pc.equal(lengths[0], 0)), "its list of texts is empty")
    for name, others in zip(lists[1:], lengths[1:], strict=True):
        for place in places(pc.not_equal(lengths[0], others)):
            causes[place] = f"{lengths[0][place]} texts but {others[place]} {name}s"
    table, odd = parted(table, causes)
    rows = pc.list_parent_indices(whole(table[lists[0]]))
    flat = {n: pc.list_flatten(whole(table[n])) for n in lists}
    return pa.table({n: flat[n] if n in flat else table[n].take(rows) for n in table.column_names}), odd


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)
