"""Tables of text: CSV, TSV, JSON lines. Their options are those of `Table`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from velm.data.bad_samples import BadSample, check_bad_share
from velm.data.tables.json_rows import json_rows
from velm.data.tables.table import Table
from velm.data.tables.validate import ROW
from velm.errors import DataError

__all__ = ["CSV", "JSONL", "TSV"]

BLOCK_BYTES = 2**20  # of a CSV file that are parsed at once; no row may be longer
BLOCK_LINES = 50_000  # of JSON lines that are Python objects at once


class _Delimited(Table):
    delimiter = ","

    def columns(self) -> list[str]:
        from pyarrow import csv

        try:
            with csv.open_csv(self.path, parse_options=self._parse_options(lambda row: "skip")) as reader:
                return list(reader.schema.names)
        except pa.ArrowInvalid as error:
            raise DataError(f"Cannot read {self.path!r} as {type(self).__name__}: {error}") from error

    def read(self, columns: list[str], bad_samples: list[BadSample]) -> Iterator[pa.Table]:
        from pyarrow import csv

        skipped: list[Any] = []

        def skip(row: Any) -> str:
            skipped.append(row)
            return "skip"

        convert = csv.ConvertOptions(
            column_types=dict.fromkeys(columns, pa.large_string()), include_columns=columns,
            strings_can_be_null=False, check_utf8=False,
        )  # fmt: skip
        options = csv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES)  # only one thread knows row numbers
        done = 0
        try:
            with csv.open_csv(self.path, options, self._parse_options(skip), convert) as blocks:
                for block in blocks:
                    yield pa.Table.from_batches([block]).append_column(ROW, _row_numbers(done, block.num_rows, skipped))
                    done += block.num_rows
        except pa.ArrowInvalid as error:
            raise DataError(f"Cannot read {self.path!r} as {type(self).__name__}: {error}") from error
        bad_samples += [
            BadSample(
                f"{self.path}, row {row.number - 1}",  # Arrow counts the header
                f"the row has {row.actual_columns} columns, the header {row.expected_columns}: {row.text[:60]!r}",
                advice="A text that holds the separator, or a quotation mark, must be quoted.",
            )
            for row in skipped
        ]

    def _parse_options(self, invalid_row_handler: Any) -> Any:
        from pyarrow import csv

        return csv.ParseOptions(
            delimiter=self.delimiter, newlines_in_values=True, invalid_row_handler=invalid_row_handler
        )


def _row_numbers(done: int, count: int, skipped: list[Any]) -> pa.Array:
    """int (count,), the numbers in the file of the `count` rows after the first `done`, `skipped` rows left out."""
    rows = np.arange(done, done + count)
    rows_before = np.array([row.number - 2 - index for index, row in enumerate(skipped)], np.int64)  # of each skipped
    return pa.array(rows + 1 + np.searchsorted(rows_before, rows, side="right"))


class CSV(_Delimited):
    """Comma-separated values with a header line, UTF-8; quoted texts may hold commas and line breaks."""


class TSV(_Delimited):
    """Tab-separated values with a header line, UTF-8."""

    delimiter = "\t"


class JSONL(Table):
    """JSON objects, one per line or the items of one array, UTF-8; a row may hold a list of texts."""

    _parsed: tuple[list[str], list[pa.Table], list[BadSample]] | None = None  # until `read`: the file is parsed once

    def columns(self) -> list[str]:
        self._parsed = self._parse()
        return self._parsed[0]

    def read(self, columns: list[str], bad_samples: list[BadSample]) -> Iterator[pa.Table]:
        (_, blocks, invalid), self._parsed = self._parsed or self._parse(), None
        bad_samples += invalid
        yield from blocks

    def _parse(self) -> tuple[list[str], list[pa.Table], list[BadSample]]:
        """The names of all columns; blocks of the columns in use, null where a line lacks one; the invalid lines."""
        names: dict[str, None] = {}
        rows: list[tuple[int, dict[str, Any]]] = []  # row number and object
        blocks: list[pa.Table] = []
        bad_samples: list[BadSample] = []
        for number, row in json_rows(self.path):
            if isinstance(row, str):
                bad_samples.append(BadSample(f"{self.path}, row {number}", row))
                continue
            names |= dict.fromkeys(row)
            rows.append((number, row))
            if len(rows) == BLOCK_LINES:
                blocks.append(self._block(rows))
                rows = []
        if rows:
            blocks.append(self._block(rows))
        if not blocks:
            check_bad_share(bad_samples, 0, self.max_bad, repr(self.path))
        return list(names), self._unify_types(blocks), bad_samples

    def _block(self, rows: list[tuple[int, dict[str, Any]]]) -> pa.Table:
        table = {name: self._column(name, [row.get(name) for _, row in rows]) for name in self.names.values()}
        return pa.table({**table, ROW: pa.array([number for number, _ in rows], pa.int64())})

    def _column(self, name: str, values: list[Any]) -> pa.Array:
        if any(isinstance(value, list) for value in values):
            values = [value if isinstance(value, list | None) else [value] for value in values]
        try:
            return pa.array(values)
        except pa.ArrowException as error:
            raise DataError(f"Column {name!r} of {self.path!r} holds values of several kinds: {error}") from error

    def _unify_types(self, blocks: list[pa.Table]) -> list[pa.Table]:
        """Blocks whose column is a list in all of them or in none; text and numbers do not mix in a column."""
        for name in self.names.values():
            kinds = {block[name].type for block in blocks}
            flat = {kind.value_type if pa.types.is_list(kind) else kind for kind in kinds} - {pa.null()}
            if len(flat) > 1 and flat != {pa.int64(), pa.float64()}:
                listed = " and ".join(sorted(map(str, flat)))
                raise DataError(f"Column {name!r} of {self.path!r} holds values of several kinds: {listed}")
            if any(map(pa.types.is_list, kinds)):
                blocks = [b.set_column(b.column_names.index(name), name, _as_lists(b[name])) for b in blocks]
        return blocks


def _as_lists(column: pa.ChunkedArray) -> pa.ChunkedArray | pa.Array:
    """Each value as a list of it, null as an empty list; lists as they are."""
    if pa.types.is_list(column.type):
        return column
    ends = np.cumsum([0, *column.is_valid().to_numpy()], dtype=np.int32)
    return pa.ListArray.from_arrays(ends, pc.drop_null(column.combine_chunks()))
