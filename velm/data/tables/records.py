"""Records stored as Arrow columns; a `Record` is built when it is accessed."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from velm.data.bad_samples import BadSample
from velm.data.base import EncodedImage, Record, Records, Turn, index_dtype
from velm.data.tables.validate import ROW, has_text

__all__ = ["TableRecords", "factorize", "image_index", "records_from_texts", "row_names"]


PARTS = 16  # of a long column, numbered one after the other: the dictionary of all of it takes more than its text
PART_ROWS = 100_000  # of a column that is numbered as a whole
EXTENSION = np.array([5, 6, 7])  # bytes from the end: the last before '.jpg'


class TableRecords(Records):
    """The records of a split: the rows of an image are one record, in the order of their first rows.

    Args:
        columns: 'text', and 'image', 'image_id', 'target', 'weight', 'history' (JSON, pairs of question and answer),
            `ROW`, those that exist; (rows,) each.
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
        self._length = int(image_index.max(initial=-1)) + 1
        self._rows = self._starts = None  # where each row is an image of its own: twelve bytes a row less
        if self._length < len(image_index):
            kind = index_dtype(len(image_index))
            self._rows = np.argsort(image_index, kind="stable").astype(kind)  # by image
            self._starts = np.concatenate([[0], np.cumsum(np.bincount(image_index))]).astype(kind)  # of each in `_rows`
        self.image_indices: np.ndarray | None = None
        self.bad_samples: list[BadSample] = []

    @property
    def text_counts(self) -> np.ndarray:
        """int (records,), the number of texts of each record."""
        return np.ones(self._length, np.int64) if self._starts is None else np.diff(self._starts).astype(np.int64)

    def __len__(self) -> int:
        return self._length

    def record(self, index: int) -> Record:
        rows = [index]
        if self._rows is not None and self._starts is not None:
            rows = self._rows[self._starts[index] : self._starts[index + 1]].tolist()
        image = self._value("image", rows[0])
        return Record(
            image_id=self._value("image_id", rows[0]) or image or f"row {self._value(ROW, rows[0])}",
            image=self._image(image, rows[0]) if image else None,
            texts=tuple(self._value("text", row) for row in rows),
            targets=self._values("target", rows),
            weights=self._values("weight", rows),
            histories=self._histories(rows),
        )

    def _histories(self, rows: Sequence[int]) -> tuple[tuple[Turn, ...], ...] | None:
        texts = self._values("history", rows)
        if texts is None:
            return None
        return tuple(tuple((question, answer) for question, answer in json.loads(text)) for text in texts)

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
    histories: Sequence[Sequence[Sequence[Turn]]] | None = None,
) -> TableRecords:
    """Records of images (N,), given the captions and the path from `root` of each; targets and histories of captions.

    The path is the id by default.
    """
    image_index = np.repeat(np.arange(len(texts)), [len(each) for each in texts])
    values = {"image": paths} if image_ids is None else {"image": paths, "image_id": image_ids}
    columns = {name: pa.array(each, pa.large_string()).take(pa.array(image_index)) for name, each in values.items()}
    columns["text"] = pa.array([text for each in texts for text in each], pa.large_string())
    if targets is not None:
        columns["target"] = pa.array([target for each in targets for target in each], pa.large_string())
    if histories is not None:
        columns["history"] = pa.array([json.dumps(h) for each in histories for h in each], pa.large_string())
    return TableRecords(columns, image_index, root)


def image_index(table: pa.Table, file: str) -> tuple[np.ndarray, np.ndarray | None]:
    """The record of each row and the image of each record, numbered in order of appearance.

    Rows with the same 'image_id' show one image; without that column, rows with the same 'image'. Rows without either
    have an image of their own. Files with one id are records of one image. Warns of them, and of a file with several
    ids.

    Returns:
        int (rows,); int (records,), None if all differ.
    """
    columns = dict(zip(table.column_names, table.columns, strict=True))
    if "image_id" in columns:
        image = factorize(columns["image_id"])
        return _files_of_ids(columns, image, file) if "image" in columns else (image, None)
    if "image" not in columns:
        return np.arange(table.num_rows), None
    named = has_text(columns["image"])
    if pc.all(named).as_py():
        return factorize(columns["image"]), None
    return factorize(pc.if_else(named, columns["image"], row_names(columns[ROW], "\0row"))), None


def _files_of_ids(
    columns: Mapping[str, pa.ChunkedArray], image: np.ndarray, file: str
) -> tuple[np.ndarray, np.ndarray | None]:
    """`image_index` of rows with 'image_id', numbered by `image`, and 'image'."""
    paths = factorize(pc.fill_null(columns["image"], ""))
    row = _other_row(paths, image)
    if row is not None and (path := columns["image"][row[1]].as_py()):
        one, other = (columns["image_id"][each].as_py() for each in row)
        warnings.warn(
            f"In {file!r} a file has several ids: {path!r} is image {one!r} and image {other!r}. The captions of one "
            f"image are then negatives of each other, and retrieval counts them as wrong. If the ids are those of "
            f"captions, set image_id_column to null.",
            stacklevel=4,
        )
    row = _other_row(image, paths)
    if row is None:
        return image, None
    one, other, image_id = *(columns["image"][each].as_py() for each in row), columns["image_id"][row[1]].as_py()
    warnings.warn(
        f"In {file!r}, row {columns[ROW][row[1]]}, an image id has several files: {image_id!r} is {one!r} and "
        f"{other!r}. Each caption of the id counts as correct for all of its files. If the ids are not "
        f"those of images, set image_id_column to null.",
        stacklevel=4,
    )
    record = factorize(pa.array(image.astype(np.int64) * (int(paths.max()) + 1) + paths))
    first = np.flatnonzero(np.diff(np.maximum.accumulate(record), prepend=-1))
    return record, image[first]


def _other_row(groups: np.ndarray, values: np.ndarray) -> tuple[int, int] | None:
    """The first row whose value is not that of the first row of its group, after that row; None if there is none."""
    first = np.flatnonzero(np.diff(np.maximum.accumulate(groups), prepend=-1))[groups]
    differs = values != values[first]
    row = int(differs.argmax())
    return (int(first[row]), row) if differs[row] else None


def factorize(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """int (rows,), equal where the values are equal, numbered in order of appearance (as `pandas.factorize`)."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    column = pa.chunked_array(chunks, column.type)
    if len(column) <= PART_ROWS or column.type != pa.large_string():
        return _encode(column)
    part = np.concatenate([_part(chunk) for chunk in column.chunks])
    index, count = np.zeros(len(column), np.int32), 0
    for number in range(PARTS):
        rows = np.flatnonzero(part == number)
        found = _encode(column.filter(pa.array(part == number)))
        index[rows] = found + count
        count += int(found.max(initial=-1)) + 1
    first = np.zeros(count, np.int32)
    first[index[::-1]] = np.arange(len(index) - 1, -1, -1, dtype=np.int32)
    number_of = np.zeros(count, np.int32)
    number_of[np.argsort(first)] = np.arange(count, dtype=np.int32)
    return number_of[index]


def _encode(column: pa.ChunkedArray) -> np.ndarray:
    encoded = column.dictionary_encode(null_encoding="encode")
    return np.concatenate([np.zeros(0, np.int32), *(np.asarray(chunk.indices) for chunk in encoded.chunks)])


def _part(texts: pa.Array) -> np.ndarray:
    """uint8 (rows,), below `PARTS`: a function of the bytes before the extension of each path."""
    _, offsets, data = texts.buffers()
    ends = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    if data is None or not len(data):
        return np.zeros(len(texts), np.uint8)
    codes = np.frombuffer(data, np.uint8)
    places = np.maximum(ends[1:, None] - EXTENSION, ends[:-1, None])
    digits = codes[np.minimum(places, len(codes) - 1)].astype(np.uint16)
    empty = ends[1:] == ends[:-1]
    return np.where(empty | np.asarray(texts.is_null()), 0, digits.sum(1) % PARTS).astype(np.uint8)


def row_names(numbers: pa.ChunkedArray | pa.Array, prefix: str = "row") -> pa.ChunkedArray | pa.Array:
    """large_string (rows,), 'row 7' for 7 and null for null."""
    texts = pc.cast(numbers, pa.large_string())
    return pc.binary_join_element_wise(pa.scalar(prefix, texts.type), texts, pa.scalar(" ", texts.type))
