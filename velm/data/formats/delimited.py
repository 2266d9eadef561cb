"""Tables of text by their format: CSV, TSV, JSON lines. Their options are those of `Table`."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from velm.data.bad_samples import BadSample, check_bad_share
from velm.data.tables.rows import ROW
from velm.data.tables.table import Table
from velm.errors import DataError

__all__ = ["CSV", "JSONL", "TSV"]

BLOCK = 2**20  # bytes of a file that are read at once; no row may be longer
LINES = 50_000  # of JSON that are Python's at once


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

        odd: list[Any] = []

        def leave_out(row: Any) -> str:
            odd.append(row)
            return "skip"

        types = {column: pa.string() for column in columns}
        convert = csv.ConvertOptions(
            column_types=types, include_columns=columns, strings_can_be_null=False, check_utf8=False
        )
        options = csv.ReadOptions(use_threads=False, block_size=BLOCK)  # in one thread, which knows the numbers of rows
        done = 0
        try:
            with csv.open_csv(self.path, options, self._parse_options(leave_out), convert) as blocks:
                for block in blocks:
                    yield pa.Table.from_batches([block]).append_column(ROW, _numbers(done, block.num_rows, odd))
                    done += block.num_rows
        except pa.ArrowInvalid as error:
            raise DataError(f"Cannot read {self.path!r} as {type(self).__name__}: {error}") from error
        bad_samples += [
            BadSample(
                f"{self.path}, row {row.number - 1}",  # Arrow counts the header
                f"the row has {row.actual_columns} columns, the header {row.expected_columns}: {row.text[:60]!r}",
                advice="A sentence that holds the separator, or a quotation mark, must be quoted.",
            )
            for row in odd
        ]

    def _parse_options(self, invalid_row_handler: Any = None) -> Any:
        from pyarrow import csv

        return csv.ParseOptions(
            delimiter=self.delimiter, newlines_in_values=True, invalid_row_handler=invalid_row_handler
        )


def _numbers(done: int, count: int, odd: list[Any]) -> pa.Array:
    """int (count,), numbers in the file of the rows after the first `done`, those that are `odd` not among them."""
    rows = np.arange(done, done + count)
    before = np.array([row.number - 2 - place for place, row in enumerate(odd)], np.int64)  # good rows before each
    return pa.array(rows + 1 + np.searchsorted(before, rows, side="right"))


class CSV(_Delimited):
    """Comma-separated values with a header line, UTF-8; quoted sentences may hold commas and line breaks."""


class TSV(_Delimited):
    """Tab-separated values with a header line, UTF-8."""

    delimiter = "\t"


class JSONL(Table):
    """One JSON object a line, UTF-8; the sentences of a row may be a list."""

    _kept: tuple[list[str], list[pa.Table], list[BadSample]] | None = None  # so that the file is parsed once

    def columns(self) -> list[str]:
        self._kept = self._parsed()
        return self._kept[0]

    def read(self, columns: list[str], bad_samples: list[BadSample]) -> Iterator[pa.Table]:
        (_, blocks, odd), self._kept = self._kept or self._parsed(), None
        bad_samples += odd
        while blocks:
            yield blocks.pop(0)

    def _parsed(self) -> tuple[list[str], list[pa.Table], list[BadSample]]:
        """The names of all columns; the rows of those in use, None where a line lacks one; lines that are no row."""
        names: dict[str, None] = {}
        waiting: list[tuple[int, dict[str, Any]]] = []  # numbers and rows
        blocks: list[pa.Table] = []
        bad_samples: list[BadSample] = []
        with pa.input_stream(self.path, compression="detect") as stream, io.BufferedReader(stream) as lines:
            for number, line in enumerate(filter(bytes.strip, lines), start=1):
                try:
                    row = _object(line)
                except ValueError as error:
                    bad_samples.append(BadSample(f"{self.path}, row {number}", str(error)))
                    continue
                names |= dict.fromkeys(row)
                waiting.append((number, row))
                if len(waiting) == LINES:
                    blocks.append(self._block(waiting))
                    waiting = []
        if not waiting and not blocks:
            check_bad_share(bad_samples, 0, self.max_bad, repr(self.path))
        blocks += [self._block(waiting)] if waiting else []
        return list(names), self._of_one_kind(blocks), bad_samples

    def _block(self, numbered: list[tuple[int, dict[str, Any]]]) -> pa.Table:
        table = {name: self._column(name, [row.get(name) for _, row in numbered]) for name in self.names.values()}
        return pa.table({**table, ROW: pa.array([number for number, _ in numbered], pa.int64())})

    def _column(self, name: str, values: list[Any]) -> pa.Array:
        if any(isinstance(value, list) for value in values):
            values = [value if isinstance(value, list | None) else [value] for value in values]
        try:
            return pa.array(values)
        except pa.ArrowException as error:
            raise DataError(f"Column {name!r} of {self.path!r} holds values of several kinds: {error}") from error

    def _of_one_kind(self, blocks: list[pa.Table]) -> list[pa.Table]:
        """As within a block: all are lists where some are, and text and numbers are not one column."""
        for name in self.names.values():
            kinds = {block[name].type for block in blocks}
            flat = {kind.value_type if pa.types.is_list(kind) else kind for kind in kinds} - {pa.null()}
            if len(flat) > 1 and flat != {pa.int64(), pa.float64()}:
                listed = " and ".join(sorted(map(str, flat)))
                raise DataError(f"Column {name!r} of {self.path!r} holds values of several kinds: {listed}")
            if any(map(pa.types.is_list, kinds)):
                blocks = [b.set_column(b.column_names.index(name), name, _lists(b[name])) for b in blocks]
        return blocks


def _lists(column: pa.ChunkedArray) -> pa.ChunkedArray | pa.Array:
    """Every value as a list of itself, a missing one as an empty list; lists as they are."""
    if pa.types.is_list(column.type):
        return column
    ends = np.cumsum([0, *column.is_valid().to_numpy()], dtype=np.int32)
    return pa.ListArray.from_arrays(ends, pa.concat_arrays(column.chunks).drop_null())


def _object(line: bytes) -> dict[str, Any]:
    """A line of JSON; ValueError says what it is instead."""
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"the row is not UTF-8: {error}") from error
    except ValueError as error:
        raise ValueError(f"the row is not JSON: {error}") from error
    if not isinstance(row, dict):
        raise ValueError(f"the row is not a JSON object: {line.strip()[:60].decode()}")
    return row
