"""Parquet files, with image paths as in the other tables or with the images' own bytes, read as they are needed."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet

from velm.data.bad_samples import BadSample
from velm.data.base import EncodedImage
from velm.data.tables.records import row_names
from velm.data.tables.rows import ROW
from velm.data.tables.table import Table
from velm.errors import DataError

__all__ = ["Parquet"]

GROUPS_KEPT = 4  # row groups in memory, of each process
LARGE = 64 * 2**20  # bytes of images in a row group, above which it is worth writing smaller ones


class Parquet(Table):
    """An Apache Parquet file; the sentences of a row may be a list.

    Args:
        image_bytes_column: column of the images' files as bytes, or of structs {bytes, path} as Hugging Face writes
            them; `image_column`, `root`, `check_files` and `allow_outside` then mean nothing.
        path: as of every table; so are the others.
    """

    def __init__(
        self,
        *,
        path: str,
        image_bytes_column: str | None = None,
        root: str | None = None,
        image_column: str | None = "image_path",
        text_column: str = "text",
        target_column: str | None = None,
        weight_column: str | None = None,
        split_column: str | None = "split",
        image_id_column: str | None = "image_id",
        splits: dict[str, str] | None = None,
        missing_image: Literal["skip", "error", "drop", "blank"] = "skip",
        check_files: bool = True,
        allow_outside: bool = False,
        allow_overlap: bool = False,
    ) -> None:
        inside = image_bytes_column is not None
        super().__init__(
            path=path, root=root, image_column=image_bytes_column if inside else image_column, text_column=text_column,
            target_column=target_column, weight_column=weight_column, split_column=split_column,
            image_id_column=image_id_column, splits=splits,
            missing_image=missing_image, check_files=check_files and not inside,
            allow_outside=allow_outside or inside, allow_overlap=allow_overlap,
        )  # fmt: skip
        self.image_bytes_column = image_bytes_column

    def columns(self) -> list[str]:
        return list(self._schema().names)

    def read(self, columns: list[str], bad_samples: list[BadSample]) -> Iterator[pa.Table]:
        inside, done = self.image_bytes_column, 0
        numbered = None if inside is None else self._numbered()
        with parquet.ParquetFile(self.path, pre_buffer=False) as file:
            for batch in file.iter_batches(columns=[column for column in columns if column != inside]):
                table, rows = pa.Table.from_batches([batch]), batch.num_rows
                if numbered is not None:
                    table = table.append_column(inside, numbered.slice(done, rows))
                yield table.append_column(ROW, pa.array(np.arange(done + 1, done + rows + 1)))
                done += rows

    def encoded(self) -> Cells | None:
        return None if self.image_bytes_column is None else Cells(self.path, self._leaf())

    def _folder(self) -> str | None:
        return self.root if self.image_bytes_column is None else None

    def _images(self, columns: dict[str, pa.ChunkedArray]) -> np.ndarray | None:
        """By id alone where there are bytes and ids: comparing bytes would read them all."""
        if self.image_bytes_column is not None and "image_id" in columns:
            columns = {name: column for name, column in columns.items() if name != "image"}
        return super()._images(columns)

    def _schema(self) -> pa.Schema:
        try:
            return parquet.read_schema(self.path)
        except pa.ArrowInvalid as error:
            raise DataError(f"Cannot read {self.path!r} as Parquet: {error}") from error

    def _leaf(self) -> str:
        """The column of bytes as Parquet names it: 'image', or 'image.bytes' of a struct."""
        name = self.image_bytes_column or ""
        kind = self._schema().field(name).type
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            name, kind = f"{name}.bytes", kind.field("bytes").type
        if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
            raise DataError(
                f"Column {self.image_bytes_column!r} of {self.path!r} must hold bytes or structs with a field 'bytes', "
                f"not {kind}. If it holds paths, name it by image_column."
            )
        return name

    def _numbered(self) -> pa.Array:
        """large_string (rows,), 'row 1' and so on, null where a row has no bytes; read only if need be."""
        leaf = self._leaf()
        with parquet.ParquetFile(self.path) as file:
            metadata, present = file.metadata, []
            place = next(i for i in range(metadata.num_columns) if metadata.schema.column(i).path == leaf)
            for number in range(metadata.num_row_groups):
                group = metadata.row_group(number)
                known = group.column(place).statistics
                if known is not None and known.has_null_count and known.null_count == 0:
                    present.append(np.ones(group.num_rows, dtype=bool))
                else:
                    column = _group(self.path, leaf, number)
                    present.append(column.is_valid().to_numpy(zero_copy_only=False))
            self._warn_of_large(metadata, place)
        there = np.concatenate([np.zeros(0, dtype=bool), *present])
        return row_names(np.arange(1, len(there) + 1), there)

    def _warn_of_large(self, metadata: Any, place: int) -> None:
        sizes = [metadata.row_group(i).column(place).total_uncompressed_size for i in range(metadata.num_row_groups)]
        if len(sizes) > GROUPS_KEPT and max(sizes) > LARGE:
            warnings.warn(
                f"Row groups of {self.path!r} hold up to {max(sizes) >> 20} MiB of images, and the whole group is "
                f"read to look at one. In shuffled training that is slow: write it with row_group_size=100, or pack "
                f"it by velm pack.",
                stacklevel=2,
            )


@dataclass(frozen=True)
class Cell:
    """The bytes in a row of a row group, read when called."""

    path: str
    column: str
    group: int
    row: int

    def __call__(self) -> bytes:
        found: bytes = _group(self.path, self.column, self.group)[self.row].as_py()
        return found


class Cells:
    """The images of a column of bytes, by row."""

    def __init__(self, path: str, column: str) -> None:
        self._path, self._column = path, column
        metadata = parquet.read_metadata(path)
        self._ends = np.cumsum([metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)])

    def __call__(self, index: int) -> EncodedImage:
        group = int(np.searchsorted(self._ends, index, side="right"))
        row = index - int(self._ends[group - 1] if group else 0)
        return EncodedImage(f"{self._path}, row {index + 1}", Cell(self._path, self._column, group, row))


@lru_cache(maxsize=GROUPS_KEPT)
def _group(path: str, column: str, group: int) -> pa.ChunkedArray:
    """The bytes of a row group. The file is opened for each: handles and Arrow's threads do not survive a fork."""
    with parquet.ParquetFile(path, memory_map=True) as file:
        values = file.read_row_group(group, columns=[column], use_threads=False).column(0)
    return pc.struct_field(values, "bytes") if pa.types.is_struct(values.type) else values
