"""Records stored as Arrow columns; a `Record` is built when it is accessed."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from velm.data.bad_samples import BadSample
from velm.data.base import EncodedImage, Record, Records
from velm.data.tables.validate import ROW, has_text
from velm.errors import DataError

__all__ = ["TableRecords", "factorize", "image_index", "records_from_texts", "row_names"]


class TableRecords(Records):
    """The records of a split: the rows of an image are one record, in the order of their first rows.

    Args:
        columns: 'text', and 'image', 'image_id', 'target', 'weight', `ROW`, those that exist; (rows,) each.
        image_index: int (rows,), the image of each row, numbered in order of appearance.
        root: folder that the paths in 'image' start from.
        encoded_image: the image of a row of the file, counted from 0, where images are not files of their own;
            'image' is then null for rows without an image.

    Attributes:
        image_indices: int (records,), equal where two records show the same image; None: all differ.
        bad_samples: what was left out, and the remaining records that are known to be bad.
    """

    def __init__(
        self,
        columns: Mapping[str, pa.ChunkedArray | pa.Array],
        image_index: np.ndarray,
        root: str = "",
        encoded_image: Callable[[int], EncodedImage] | None = None,
    ) -> None:
        self._columns, self._root, self._encoded_image = columns, root, encoded_image
        self._rows = np.argsort(image_index, kind="stable")  # by image
        self._starts = np.concatenate([[0], np.cumsum(np.bincount(image_index))])  # of each image in `_rows`
        self.image_indices: np.ndarray | None = None
        self.bad_samples: list[BadSample] = []

    @property
    def text_counts(self) -> np.ndarray:
        """int (records,), the number of texts of each record."""
        return np.diff(self._starts)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def record(self, index: int) -> Record:
        rows: list[int] = self._rows[self._starts[index] : self._starts[index + 1]].tolist()
        image = self._value("image", rows[0])
        return Record(
            image_id=self._value("image_id", rows[0]) or image or f"row {self._value(ROW, rows[0])}",
            image=self._image(image, rows[0]) if image else None,
            texts=tuple(self._value("text", row) for row in rows),
            targets=self._values("target", rows),
            weights=self._values("weight", rows),
        )

    def _image(self, path: str, row: int) -> str | EncodedImage:
        if self._encoded_image is None:
            return os.path.join(self._root, path)
        return self._encoded_image(self._value(ROW, row) - 1)

    def _value(self, column: str, row: int) -> Any:
        values = self._columns.get(column)
        return None if values is None else values[row].as_py()

    def _values(self, column: str, rows: Sequence[int]) -> tuple[Any, ...] | None:
        return tuple(self._value(column, row) for row in rows) if column in self._columns else None


def records_from_texts(
    texts: Sequence[Sequence[str]],
    paths: Sequence[str],
    root: str,
    image_ids: Sequence[str] | None = None,
    targets: Sequence[Sequence[str]] | None = None,
) -> TableRecords:
    """Records of images (N,), given the captions and the path from `root` of each, and the targets of the captions.

    The path is the id by default.
    """
    image_index = np.repeat(np.arange(len(texts)), [len(each) for each in texts])
    values = {"image": paths} if image_ids is None else {"image": paths, "image_id": image_ids}
    columns = {name: pa.array(each, pa.large_string()).take(pa.array(image_index)) for name, each in values.items()}
    columns["text"] = pa.array([text for each in texts for text in each], pa.large_string())
    if targets is not None:
        columns["target"] = pa.array([target for each in targets for target in each], pa.large_string())
    return TableRecords(columns, image_index, root)


def image_index(table: pa.Table, file: str) -> np.ndarray:
    """int (rows,), the image of each row, numbered in order of appearance.

    Rows with the same 'image_id' show one image; without that column, rows with the same 'image'. Rows without either
    have an image of their own.

    Raises:
        DataError: two images have the same id; the message names a row of `file`.
    """
    columns = dict(zip(table.column_names, table.columns, strict=True))
    if "image_id" in columns:
        index = factorize(columns["image_id"])
        if "image" in columns:
            _require_one_image_per_id(columns, index, file)
        return index
    if "image" not in columns:
        return np.arange(table.num_rows)
    named = has_text(columns["image"])
    if pc.all(named).as_py():
        return factorize(columns["image"])
    return factorize(pc.if_else(named, columns["image"], row_names(columns[ROW], "\0row")))


def _require_one_image_per_id(columns: Mapping[str, pa.ChunkedArray], index: np.ndarray, file: str) -> None:
    image = factorize(pc.fill_null(columns["image"], ""))
    first = np.flatnonzero(np.diff(np.maximum.accumulate(index), prepend=-1))  # row of each id
    conflicts = np.flatnonzero(image != image[first[index]])
    if len(conflicts):
        row = int(conflicts[0])
        one, other = columns["image"][int(first[index[row]])], columns["image"][row]
        raise DataError(
            f"{file!r}, row {columns[ROW][row]}: image id {columns['image_id'][row].as_py()!r} has two "
            f"images, {one.as_py()!r} and {other.as_py()!r}. One id, one image."
        )


def factorize(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """int (rows,), equal where the values are equal, numbered in order of appearance (as `pandas.factorize`)."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    encoded = pa.chunked_array(chunks, column.type).dictionary_encode(null_encoding="encode")
    return np.concatenate([np.zeros(0, np.int32), *(np.asarray(chunk.indices) for chunk in encoded.chunks)])


def row_names(numbers: pa.ChunkedArray | pa.Array, prefix: str = "row") -> pa.ChunkedArray | pa.Array:
    """large_string (rows,), 'row 7' for 7 and null for null."""
    texts = pc.cast(numbers, pa.large_string())
    return pc.binary_join_element_wise(pa.scalar(prefix, texts.type), texts, pa.scalar(" ", texts.type))
