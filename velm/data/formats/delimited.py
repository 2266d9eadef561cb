"""Tables of text with a delimiter: CSV, TSV. Their common options are those of `Table`."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from velm.data.bad_samples import BadSample
from velm.data.tables.dialect import Dialect, Quoting, detect_dialect
from velm.data.tables.encoding import utf8_stream
from velm.data.tables.quotes import swallowed_rows
from velm.data.tables.table import Table
from velm.data.tables.validate import ROW
from velm.errors import DataError

__all__ = ["CSV", "TSV"]

BLOCK_BYTES = 2**20  # of a CSV file that are parsed at once; more where a row is longer
BLOCKS_HELD = 8  # blocks whose parsing may leave unused memory behind
MOST_BYTES = 2**26  # of rows with line breaks that are parsed at once
UNQUOTED = "A text that holds the separator, or a quotation mark, must be quoted."
STRAY = (
    "Double the quotation marks inside of quoted texts, or set quoting: none if quotation marks are plain characters."
)


@dataclass(kw_only=True, eq=False, repr=False)
class _Delimited(Table):
    """A table of text. How it is written is detected where an option is None, and reported unless it is the default.

    Args:
        delimiter: a character between the cells, or its name: comma, semicolon, tab, pipe.
        quoting: 'minimal' or 'all': quotation marks delimit cells; 'none': they are plain characters, as in most TSVs.
        encoding: a codec of Python, such as cp1252.
        header: whether the first row has the names of the columns.
        columns: the names of the columns, for a file without a header.
    """

    delimiter: str | None = None
    quoting: Quoting | None = None
    encoding: str | None = None
    header: bool | None = None
    columns: list[str] | None = None
    default_delimiter: ClassVar[str] = ","

    def column_names(self) -> list[str]:
        return self._dialect.names

    @cached_property
    def _dialect(self) -> Dialect:
        dialect = self._detect(self.quoting)
        self.detected += dialect.assumed
        return dialect

    def _detect(self, quoting: Quoting | None) -> Dialect:
        return detect_dialect(
            self.path, self.wanted, self.default_delimiter, delimiter=self.delimiter, quoting=quoting,
            encoding=self.encoding, header=self.header, columns=self.columns,
        )  # fmt: skip

    def read(self, columns: list[str], bad_samples: list[BadSample]) -> Iterator[pa.Table]:
        dialect = self._dialect
        blocks, invalid = self._parse(dialect, columns)
        if self.quoting is None and any(sample.advice == STRAY for sample in invalid):
            plain = self._detect("none")
            if plain.names == dialect.names:
                others, more = self._parse(plain, columns)
                if not more:
                    blocks, invalid = others, more
                    self.detected.append("quoting: none")
        bad_samples += invalid
        blocks.reverse()
        while blocks:
            yield blocks.pop()

    def _parse(self, dialect: Dialect, columns: list[str]) -> tuple[list[pa.Table], list[BadSample]]:
        """The columns, block by block, and the lines that are not rows.

        Raises:
            DataError: the file cannot be parsed.
        """
        size = max(BLOCK_BYTES, 2 * dialect.survey.longest)
        while True:
            try:
                return self._parse_blocks(dialect, columns, min(size, 2**31 - 1))
            except pa.ArrowInvalid as error:
                if "straddl" not in str(error):
                    raise DataError(f"Cannot read {self.path!r} as {type(self).__name__}: {error}") from error
                if size >= max(MOST_BYTES, 2 * dialect.survey.longest):
                    raise DataError(
                        f"Cannot read {self.path!r}: a row is longer than {size >> 20} MiB, most likely from a stray "
                        f"quotation mark on. {STRAY}"
                    ) from error
                size *= 8

    def _parse_blocks(
        self, dialect: Dialect, columns: list[str], block_size: int
    ) -> tuple[list[pa.Table], list[BadSample]]:
        from pyarrow import csv

        skipped: list[Any] = []

        def skip(row: Any) -> str:
            skipped.append(row)
            return "skip"

        names = [str(index) for index in range(len(dialect.names))]  # unique, also where those in the file are not
        used = [str(dialect.names.index(column)) for column in columns]
        quotes = dialect.quoted and dialect.survey.quotes
        read = csv.ReadOptions(  # only one thread knows row numbers
            use_threads=False, block_size=block_size, column_names=names, skip_rows_after_names=int(dialect.header)
        )
        parse = csv.ParseOptions(
            delimiter=dialect.delimiter, quote_char='"' if quotes else False, newlines_in_values=quotes,
            invalid_row_handler=skip,
        )  # fmt: skip
        convert = csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.large_string()), include_columns=names if quotes else used,
            strings_can_be_null=False, check_utf8=False,
        )  # fmt: skip
        blocks, bad_samples, done = [], [], 0
        with utf8_stream(self.path, dialect.encoding) as stream:
            text = pa.PythonFile(_Unpadded(stream, dialect.delimiter), "r") if quotes and dialect.blanks else stream
            with csv.open_csv(text, read, parse, convert) as reader:
                for batch in reader:
                    block = pa.Table.from_batches([batch])
                    rows = _row_numbers(done, block.num_rows, skipped, int(dialect.header))
                    done += block.num_rows
                    block, swallowed = self._without_swallowed(block, rows, dialect)
                    bad_samples += swallowed
                    block = block.select([*used, ROW]).rename_columns([*columns, ROW])
                    blocks.append(self._trim(block, dialect.blanks))
                    if len(blocks) % BLOCKS_HELD == 0:
                        pa.default_memory_pool().release_unused()
        bad_samples += [sample for row in skipped for sample in self._invalid(row, dialect)]
        return blocks, bad_samples

    def _without_swallowed(self, block: pa.Table, rows: pa.Array, dialect: Dialect) -> tuple[pa.Table, list[BadSample]]:
        """A block with `ROW`, without the rows that hold lines that were to be rows, and a bad sample for each line."""
        swallowed = {}
        if dialect.quoted and dialect.survey.quotes:
            image, split = (self.names.get(name) for name in ("image", "split"))
            places = [None if name is None else dialect.names.index(name) for name in (image, split)]
            swallowed = swallowed_rows(block, dialect.delimiter, places[0], places[1], dialect.survey.well_formed)
        block = block.append_column(ROW, rows)
        if not swallowed:
            return block, []
        valid = np.ones(block.num_rows, bool)
        valid[list(swallowed)] = False
        samples = [s for row, lines in swallowed.items() for s in self._bad_lines(rows[row].as_py(), lines)]
        return block.filter(pa.array(valid)), samples

    def _bad_lines(self, row: int, lines: list[str]) -> list[BadSample]:
        """A bad sample for each line of a row that a stray quotation mark has made of several."""
        return [
            BadSample(
                f"{self.path}, row {row}" + (f", line {number}" if number > 1 else ""),
                f"a stray quotation mark joins {len(lines)} lines to one row; line {number} is {line[:60]!r}",
                advice=STRAY,
            )
            for number, line in enumerate(lines, start=1)
        ]

    def _invalid(self, row: Any, dialect: Dialect) -> list[BadSample]:
        number = row.number - dialect.header  # Arrow counts the header
        lines = re.split(r"\r\n|\r|\n", row.text.strip("\r\n"))
        if len(lines) > 1:
            return self._bad_lines(number, lines)
        kind = "header" if dialect.header and self.columns is None else "table"
        cause = f"the row has {row.actual_columns} columns, the {kind} {row.expected_columns}: {row.text[:60]!r}"
        return [BadSample(f"{self.path}, row {number}", cause, advice=UNQUOTED)]

    def _trim(self, block: pa.Table, texts: bool) -> pa.Table:
        """Remove blanks around paths, ids and names of splits, and, with `texts`, around all cells."""
        roles = self.names if texts else ("image", "image_id", "split")
        trimmed = {self.names[role] for role in roles if role in self.names} & set(block.column_names)
        trimmed |= set(block.column_names) - {ROW} if texts else set()
        columns = [
            pc.ascii_trim_whitespace(column) if name in trimmed else column
            for name, column in zip(block.column_names, block.columns, strict=True)
        ]
        return pa.table(columns, block.column_names)


def _row_numbers(done: int, count: int, skipped: list[Any], header: int) -> pa.Array:
    """int (count,), the numbers in the file of the `count` rows after the first `done`, `skipped` rows left out."""
    rows = np.arange(done, done + count)
    rows_before = np.array([row.number - 1 - header - index for index, row in enumerate(skipped)], np.int64)
    return pa.array(rows + 1 + np.searchsorted(rows_before, rows, side="right"))


class _Unpadded(io.RawIOBase):
    """A stream without the blanks between a delimiter and a quotation mark, which would make the mark plain text."""

    def __init__(self, stream: pa.NativeFile, delimiter: str) -> None:
        self._stream, self._rest = stream, b""
        self._delimiter = delimiter.encode()
        self._padded = re.compile(re.escape(self._delimiter) + rb'[ \t]+(?=")')
        self._open = re.compile(re.escape(self._delimiter) + rb"[ \t]*$")

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        while block := self._stream.read(size if size > 0 else BLOCK_BYTES):
            block = self._rest + block
            found = self._open.search(block)
            self._rest = block[found.start() :] if found else b""
            if block := self._padded.sub(self._delimiter, block[: len(block) - len(self._rest)]):
                return block
        rest, self._rest = self._rest, b""
        return rest


class CSV(_Delimited):
    """Comma-separated values; quoted texts may hold commas and line breaks."""


class TSV(_Delimited):
    """Tab-separated values."""

    default_delimiter = "\t"
