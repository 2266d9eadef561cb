"""Tables of text by their format: CSV, TSV, JSON lines. Their options are those of `Table`."""

from __future__ import annotations

import io
import json
from typing import Any

import pyarrow as pa

from velm.data.base import DataError
from velm.data.table import Table

__all__ = ["CSV", "JSONL", "TSV"]


class _Delimited(Table):
    delimiter = ","

    def columns(self) -> list[str]:
        from pyarrow import csv

        try:
            with csv.open_csv(self.path, parse_options=self._parse_options()) as reader:
                return list(reader.schema.names)
        except pa.ArrowInvalid as error:
            raise DataError(f"Cannot read {self.path!r} as {type(self).__name__}: {error}") from error

    def read(self, columns: list[str]) -> pa.Table:
        from pyarrow import csv

        types = {column: pa.large_string() for column in columns}
        convert = csv.ConvertOptions(column_types=types, include_columns=columns, strings_can_be_null=False)
        try:
            return csv.read_csv(self.path, parse_options=self._parse_options(), convert_options=convert)
        except pa.ArrowInvalid as error:
            raise DataError(f"Cannot read {self.path!r} as {type(self).__name__}: {error}") from error

    def _parse_options(self) -> Any:
        from pyarrow import csv

        return csv.ParseOptions(delimiter=self.delimiter, newlines_in_values=True)


class CSV(_Delimited):
    """Comma-separated values with a header line, UTF-8; quoted sentences may hold commas and line breaks."""


class TSV(_Delimited):
    """Tab-separated values with a header line, UTF-8."""

    delimiter = "\t"


class JSONL(Table):
    """One JSON object a line, UTF-8; the sentences of a row may be a list."""

    _kept: dict[str, list[Any]] | None = None  # between `columns` and `read`, so that the file is parsed once

    def columns(self) -> list[str]:
        self._kept = self._values()
        return list(self._kept)

    def read(self, columns: list[str]) -> pa.Table:
        values, self._kept = self._kept or self._values(), None
        return pa.table({column: self._column(column, values[column]) for column in columns})

    def _values(self) -> dict[str, list[Any]]:
        """Every column of the file, None where a line does not have it."""
        values: dict[str, list[Any]] = {}
        with pa.input_stream(self.path, compression="detect") as stream, io.TextIOWrapper(stream, "utf-8") as lines:
            for number, line in enumerate(filter(str.strip, lines)):
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise DataError(f"{self.path!r}, row {number + 1} is not JSON: {error}") from error
                if not isinstance(row, dict):
                    raise DataError(f"{self.path!r}, row {number + 1} is not a JSON object: {line.strip()[:60]}")
                for column, value in row.items():
                    values.setdefault(column, [None] * number).append(value)
                for column in values.keys() - row.keys():
                    values[column].append(None)
        return values

    def _column(self, name: str, values: list[Any]) -> pa.Array:
        if any(isinstance(value, list) for value in values):
            values = [value if isinstance(value, list | None) else [value] for value in values]
        try:
            return pa.array(values)
        except pa.ArrowException as error:
            raise DataError(f"Column {name!r} of {self.path!r} holds values of several kinds: {error}") from error
