"""Parquet files, with image paths as in the other tables or with the image bytes, which are read when needed."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet

from velm.data.bad_samples import BadSample
from velm.data.base import EncodedImage
from velm.data.tables.records import row_names
from velm.data.tables.table import Table
from velm.data.tables.validate import ROW
from velm.errors import DataError

__all__ = ["Parquet"]

CACHED_GROUPS = 4  # row groups in memory, per process
LARGE_GROUP = 64 * 2**20  # bytes of images in a row group, above which smaller groups are advised


@dataclass(kw_only=True, eq=False, repr=False)
class Parquet(Table):
    """An Apache Parquet file; a row may hold a list of texts.

    Args:
        image_bytes_column: column of the image files as bytes, or of structs {bytes, path} as Hugging Face writes
            them; `image_column`, `root`, `check_files` and `allow_outside` are then ignored.
    """

    image_bytes_column: str | None = None

    def __post_init__(self) -> None:
        if self.image_bytes_column is not None:
            self.image_column, self.check_files, self.allow_outside = self.image_bytes_column, False, True
        super().__post_init__()

    def column_names(self) -> list[str]:
        return list(self._schema().names)

    def read(self, columns: list[str], bad_samples: list[BadSample]) -> Iterator[pa.Table]:
        images, done = (None if self.image_bytes_column is None else self.names["image"]), 0
        names = None if images is None else self._image_names()
        with parquet.ParquetFile(self.path, pre_buffer=False) as file:
            for batch in file.iter_batches(columns=[column for column in columns if column != images]):
                table, rows = pa.Table.from_batches([batch]), batch.num_rows
                if names is not None:
                    table = table.append_column(images, names.slice(done, rows))
                yield table.append_column(ROW, pa.array(np.arange(done + 1, done + rows + 1)))
                done += rows

    def encoded_image(self) -> RowImages | None:
        return None if self.image_bytes_column is None else RowImages(self.path, self._bytes_column())

    def _paths_root(self) -> str | None:
        return self.image_root if self.image_bytes_column is None else None

    def _image_index(self, table: pa.Table) -> tuple[np.ndarray, np.ndarray | None]:
        """By id alone if there are bytes and ids: comparing the bytes would read them all."""
        if self.image_bytes_column is not None and "image_id" in table.column_names:
            table = table.drop_columns("image")
        return super()._image_index(table)

    def _schema(self) -> pa.Schema:
        try:
            return parquet.read_schema(self.path)
        except pa.ArrowInvalid as error:
            raise DataError(f"Cannot read {self.path!r} as Parquet: {error}") from error

    def _bytes_column(self) -> str:
        """The column of bytes in Parquet's notation: 'image', or 'image.bytes' in a struct."""
        name = self.names["image"]
        kind = self._schema().field(name).type
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            name, kind = f"{name}.bytes", kind.field("bytes").type
        if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
            raise DataError(
                f"Column {name!r} of {self.path!r} must hold bytes or structs with a field 'bytes', "
                f"not {kind}. If it holds paths, name it by image_column."
            )
        return name

    def _image_names(self) -> pa.Array:
        """large_string (rows,), 'row 1', 'row 2', ...; null where a row has no bytes.

        Only the row groups whose statistics do not exclude nulls are read.
        """
        name = self._bytes_column()
        with parquet.ParquetFile(self.path) as file:
            metadata = file.metadata
        column = next(i for i in range(metadata.num_columns) if metadata.schema.column(i).path == name)
        present = [np.zeros(0, dtype=bool)]
        for group in range(metadata.num_row_groups):
            statistics = metadata.row_group(group).column(column).statistics
            if statistics is not None and statistics.has_null_count and statistics.null_count == 0:
                present.append(np.ones(metadata.row_group(group).num_rows, dtype=bool))
            else:
                present.append(np.asarray(_read_group(self.path, name, group).is_valid()))
        self._warn_if_large(metadata, column)
        missing = ~np.concatenate(present)
        return row_names(pa.array(np.arange(1, len(missing) + 1), mask=missing))

    def _warn_if_large(self, metadata: Any, column: int) -> None:
        sizes = [metadata.row_group(i).column(column).total_uncompressed_size for i in range(metadata.num_row_groups)]
        if len(sizes) > CACHED_GROUPS and max(sizes) > LARGE_GROUP:
            warnings.warn(
                f"Row groups of {self.path!r} hold up to {max(sizes) >> 20} MiB of images, and the whole group is "
                f"read to look at one. In shuffled training that is slow: write it with row_group_size=100, or pack "
                f"it by velm pack.",
                stacklevel=2,
            )


@dataclass(frozen=True)
class RowBytes:
    """Returns the bytes of a row of a row group; picklable."""

    path: str
    column: str
    group: int
    row: int

    def __call__(self) -> bytes:
        found: bytes = _read_group(self.path, self.column, self.group)[self.row].as_py()
        return found


class RowImages:
    """Maps a row, counted from 0, to the image in a column of bytes."""

    def __init__(self, path: str, column: str) -> None:
        self._path, self._column = path, column
        metadata = parquet.read_metadata(path)
        self._ends = np.cumsum([metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)])

    def __call__(self, index: int) -> EncodedImage:
        group = int(np.searchsorted(self._ends, index, side="right"))
        row = index - int(self._ends[group - 1] if group else 0)
        return EncodedImage(f"{self._path}, row {index + 1}", RowBytes(self._path, self._column, group, row))


@lru_cache(maxsize=CACHED_GROUPS)
def _read_group(path: str, column: str, group: int) -> pa.ChunkedArray:
    """The bytes of a row group. Opens the file each time: handles and Arrow's threads do not survive a fork."""
    with parquet.ParquetFile(path, memory_map=True) as file:
        values = file.read_row_group(group, columns=[column], use_threads=False).column(0)
    return pc.struct_field(values, "bytes") if pa.types.is_struct(values.type) else values
