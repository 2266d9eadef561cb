"""Quotation marks in tables of text: whether they delimit cells, and which of them swallow lines."""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from velm.data.tables.validate import true_indices

__all__ = ["QuoteSurvey", "survey_quotes", "swallowed_rows"]

BLOCK = 2**20
SIMILAR = 0.8  # fraction of the lines of a cell that look like rows, at which it has swallowed them
ROWS = 10_000  # that show what an image path looks like
LONG = 200  # characters of a cell that has, where nothing but the number of delimiters tells


@dataclass(frozen=True)
class QuoteSurvey:
    """The quotation marks of a file.

    Attributes:
        quotes: whether there are any.
        well_formed: whether all of them can delimit cells: they open a cell, close it, or are doubled within.
        needed: whether one of these cells holds a delimiter, a line break or a doubled quotation mark.
        longest: number of bytes that no line exceeds.
    """

    quotes: bool
    well_formed: bool
    needed: bool
    longest: int


def survey_quotes(stream: pa.NativeFile, delimiter: str, needed: bool = False) -> QuoteSurvey:
    """Survey a stream of UTF-8 (RFC 4180: inside a cell the number of quotation marks so far is odd).

    Args:
        stream: the file.
        delimiter: one character.
        needed: True does not look whether quotation marks are needed.
    """
    quotes, well_formed, opened = False, True, False
    longest, since = 0, 0  # `since` the last line break, in bytes
    neighbour = np.zeros(256, bool)  # of a quotation mark that delimits a cell
    neighbour[list(f'{delimiter}\r\n"'.encode())] = True
    window = b"\n"  # a byte before and a byte after those that are examined
    for block in _blocks(stream):
        first, last = block.find(b"\n"), block.rfind(b"\n")
        longest = max(longest, since + (first if first >= 0 else len(block)), last - first)
        since = len(block) - last - 1 if first >= 0 else since + len(block)
        window += block
        if b'"' in window or opened:
            quotes = True
            codes = np.frombuffer(window, np.uint8)
            marks = np.flatnonzero(codes[1:-1] == ord('"')) + 1
            opening, closing = marks[int(opened) :: 2], marks[int(not opened) :: 2]
            well_formed &= bool(neighbour[codes[opening - 1]].all() and neighbour[codes[closing + 1]].all())
            if not needed:
                breaks = np.flatnonzero(neighbour[codes[1:-1]] & (codes[1:-1] != ord('"'))) + 1
                inside = (np.searchsorted(marks, breaks) % 2 == 1) ^ opened
                needed = bool(inside.any() or (codes[opening - 1] == ord('"')).any())
            opened ^= len(marks) % 2 == 1
        window = window[-2:]
    return QuoteSurvey(quotes, well_formed and not opened, needed, longest)


def _blocks(stream: pa.NativeFile) -> Iterator[bytes]:
    start = stream.read(BLOCK).removeprefix(codecs.BOM_UTF8)
    while start:
        yield start
        start = stream.read(BLOCK)
    yield b"\n"


def swallowed_rows(
    table: pa.Table, delimiter: str, image: int | None = None, split: int | None = None, well_formed: bool = True
) -> dict[int, list[str]]:
    """Rows one of whose cells holds what must be rows of their own, after a stray quotation mark; with their lines.

    Their lines, split at the delimiter, have image files and names of splits where the other rows have them. Without
    such columns they have as many cells as the table, and are long, if all quotation marks are well-formed.

    Args:
        table: all columns of some rows, as texts.
        delimiter: one character.
        image: index of the column of image paths.
        split: index of the column of splits.
        well_formed: whether all quotation marks of the file are.
    """
    if not any(_holds(column, b"\n") for column in table.columns):
        return {}
    breaks = _count(table, "\n")
    enough = pc.or_(pc.greater_equal(_count(table, delimiter), breaks), pa.scalar(not well_formed))
    suspect = true_indices(pc.and_(pc.greater(breaks, 0), enough))
    if not suspect:
        return {}
    plain = table.filter(pc.equal(breaks, 0))
    anchors: dict[int, Collection[str]] = {}
    if split is not None:
        anchors[split] = {value.strip() for value in _texts(pc.unique(table[split])) if "\n" not in value}
    if image is not None:
        some = pa.concat_tables([plain[:ROWS], table.take(suspect[:ROWS])])
        anchors[image] = {suffix for value in _texts(some[image]) if "\n" not in value and (suffix := _suffix(value))}
    usual = sum(pc.max(pc.binary_length(column)).as_py() or 0 for column in plain.columns)
    found = {}
    for row in suspect:
        cells = [_texts(column[row : row + 1])[0] for column in table.columns]
        lines = re.split(r"\r\n|\r|\n", delimiter.join(cells).rstrip("\r\n"))
        similar = [line for line in lines if _is_row(line.split(delimiter), table.num_columns, anchors)]
        certain = (
            any(anchors.values()) or not well_formed or (len(lines) > 2 and max(map(len, cells)) > max(LONG, 2 * usual))
        )
        open_end = not well_formed and cells[-1].endswith("\n")  # up to the end of the file
        if len(lines) > 1 and (open_end or (certain and len(similar) >= max(2, SIMILAR * len(lines)))):
            found[row] = lines
    return found


def _is_row(cells: list[str], columns: int, anchors: Mapping[int, Collection[str]]) -> bool:
    """Whether a line has the cells of `anchors`; with as many cells as there are columns, unless there are anchors."""
    fits = all(i < len(cells) and _fits(cells[i], values) for i, values in anchors.items())
    return fits and (len(cells) == columns or (bool(anchors) and len(cells) > 1))


def _fits(cell: str, values: Collection[str]) -> bool:
    return cell.strip() in values or _suffix(cell) in values


def _suffix(path: str) -> str:
    return os.path.splitext(path.strip())[1].lower()


def _holds(column: pa.ChunkedArray, text: bytes) -> bool:
    """Whether the texts of a column, or those that it is a slice of, hold a text."""
    return any(text in data.to_pybytes() for chunk in column.chunks if (data := chunk.buffers()[2]) is not None)


def _count(table: pa.Table, text: str) -> pa.ChunkedArray:
    """int (rows,), the occurrences of a text in the cells of each row."""
    counts = [pc.fill_null(pc.count_substring(column.cast(pa.large_binary()), text), 0) for column in table.columns]
    total = counts[0]
    for each in counts[1:]:
        total = pc.add(total, each)
    return total


def _texts(column: pa.ChunkedArray | pa.Array) -> list[str]:
    return [(value or b"").decode("utf-8", "replace") for value in column.cast(pa.large_binary()).to_pylist()]
