"""JSON lines. Their common options are those of `Table`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from velm.data.bad_samples import BadSample, check_bad_share
from velm.data.tables.columns import matches
from velm.data.tables.encoding import OTHER_ENCODING, detect_encoding
from velm.data.tables.json_rows import json_rows
from velm.data.tables.table import Table
from velm.data.tables.validate import ROW

__all__ = ["JSONL"]

BLOCK_LINES = 50_000  # of lines that are Python objects at once


@dataclass(kw_only=True, eq=False, repr=False)
class JSONL(Table):
    """JSON objects, one per line or the items of one array; a row may hold a list of texts.

    Numbers are read as they are written, so that the ids 7 and "7" are equal; NaN is null.

    Args:
        encoding: a codec of Python, such as cp1252; None: UTF-8, or UTF-16 by its byte-order mark.
    """

    encoding: str | None = None

    def column_names(self) -> list[str]:
        return self._parsed[0]

    def read(self, columns: list[str], bad_samples: list[BadSample]) -> Iterator[pa.Table]:
        _, blocks, invalid = self._parsed
        del self._parsed  # the blocks are used once
        bad_samples += invalid
        lists = {
            name for name in columns for block in blocks if name in block and pa.types.is_large_list(block[name].type)
        }
        blocks.reverse()
        while blocks:
            yield _with_columns(blocks.pop(), columns, lists)

    @cached_property
    def _parsed(self) -> tuple[list[str], list[dict[str, pa.Array]], list[BadSample]]:
        """The names of all columns; blocks of those that may be in use; a bad sample for each invalid line."""
        encoding = self.encoding or detect_encoding(self.path)
        if self.encoding is None and encoding != "utf-8":
            self.detected.append(f"encoding: {encoding}")
        names: dict[str, bool] = {}  # whether the column may be in use
        rows: list[tuple[int, dict[str, Any]]] = []  # row number and object
        blocks: list[dict[str, pa.Array]] = []
        bad_samples: list[BadSample] = []
        for number, row in json_rows(self.path, encoding, texts=True):
            if isinstance(row, dict):
                for name in [name for name in row if name not in names]:
                    names[name] = any(matches(name, each) for some in self.wanted.values() for each in some)
                row = _plain({name: value for name, value in row.items() if names[name]})
            if isinstance(row, str):
                advice = OTHER_ENCODING if "not UTF-8" in row else ""
                bad_samples.append(BadSample(f"{self.path}, row {number}", row, advice=advice))
                continue
            rows.append((number, row))
            if len(rows) == BLOCK_LINES:
                blocks.append(_block(rows))
                rows = []
        if rows:
            blocks.append(_block(rows))
        if not blocks:
            check_bad_share(bad_samples, 0, self.max_bad, repr(self.path))
        return list(names), blocks, bad_samples


def _block(rows: list[tuple[int, dict[str, Any]]]) -> dict[str, pa.Array]:
    """The columns of some rows and `ROW`; null where a row lacks a column."""
    block = {}
    for name in dict.fromkeys(name for _, row in rows for name in row):
        values = [row.get(name) for _, row in rows]
        if any(isinstance(value, list) for value in values):
            lists = [value if isinstance(value, list) else [value] for value in values]
            block[name] = pa.array(lists, pa.large_list(pa.large_string()))
        else:
            block[name] = pa.array(values, pa.large_string())
    block[ROW] = pa.array([number for number, _ in rows], pa.int64())
    return block


def _with_columns(block: dict[str, pa.Array], columns: Iterable[str], lists: Iterable[str]) -> pa.Table:
    """A table of some columns; those in `lists` hold lists."""
    absent = pa.nulls(len(block[ROW]), pa.large_string())
    table = {name: block.get(name, absent) for name in columns}
    return pa.table({name: _as_lists(v) if name in lists else v for name, v in table.items()} | {ROW: block[ROW]})


def _as_lists(column: pa.Array) -> pa.Array:
    """Each value, null too, as a list of it; lists as they are."""
    if pa.types.is_large_list(column.type):
        return column
    return pa.LargeListArray.from_arrays(np.arange(len(column) + 1), column)


def _plain(row: dict[str, Any]) -> dict[str, Any] | str:
    """The values of a row as texts, or lists of texts; what is wrong with one that is an object or a nested list."""
    for name, value in row.items():
        values = value if isinstance(value, list) else [value]
        if any(isinstance(each, list | dict) for each in values):
            return f"column {name!r} holds {'an object' if isinstance(value, dict) else 'a list of lists or objects'}"
    return {name: [*map(_text, value)] if isinstance(value, list) else _text(value) for name, value in row.items()}


def _text(value: str | bool | None) -> str | None:
    return str(value).lower() if isinstance(value, bool) else value
