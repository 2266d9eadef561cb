"""Finds what is unusable in a table: invalid rows, missing image files, images that are in two splits."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from velm.data.bad_samples import MAX_CHARACTERS, BadSample, too_long
from velm.errors import DataError
from velm.util import did_you_mean

__all__ = [
    "ROW", "RejectedRows", "decode_texts", "drop_rows", "existing_path", "explode_lists", "has_text",
    "invalid_utf8", "parse_weights", "reject_invalid_utf8", "reject_rows",
    "rejected_samples", "text_problems", "true_indices",
]  # fmt: skip

ROW = "__row__"  # column: the row's number in its file, from 1, the header not counted
LIST_COLUMNS = ("text", "target", "weight")  # may hold a list per row


@dataclass(frozen=True)
class RejectedRows:
    """Rows removed from a table.

    Attributes:
        table: the columns `ROW`, 'image_id', 'image' and 'split' of the rows, those that exist.
        causes: what is wrong with each row.
    """

    table: pa.Table
    causes: list[str]


def existing_path(path: str) -> str:
    """`path` itself.

    Raises:
        DataError: there is no such file; the message names the most similar one in its folder.
    """
    if os.path.exists(path):
        return path
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        raise DataError(f"There is no file {path!r}; its folder {folder!r} does not exist either.")
    raise DataError(f"There is no file {path!r}.{did_you_mean(os.path.basename(path), os.listdir(folder))}")


def reject_rows(table: pa.Table, causes: Mapping[int, str]) -> tuple[pa.Table, RejectedRows]:
    """Split a table into valid and rejected rows; `causes` maps the index of a row to what is wrong with it."""
    names = [name for name in (ROW, "image_id", "image", "split") if name in table.column_names]
    valid = np.ones(table.num_rows, dtype=bool)
    valid[list(causes)] = False
    rejected = RejectedRows(table.select(names).filter(pa.array(~valid)), [causes[row] for row in sorted(causes)])
    return table.filter(pa.array(valid)) if causes else table, rejected


def rejected_samples(
    rejected: RejectedRows, valid: Sequence[pa.Table], file: str, root: str | None = None, advice: str = ""
) -> list[BadSample]:
    """A bad sample per rejected row, in their order.

    Args:
        rejected: rows with the same 'image_id', else the same 'image', show one image; it is lost if no row is left.
        valid: the tables of the rows that are left.
        file: the rows' file, for messages.
        root: folder of the paths in 'image'; None if they are not paths.
        advice: what to do if many rows are like these.
    """
    table = rejected.table
    if not table.num_rows:
        return []
    key = next((name for name in ("image_id", "image") if name in table.column_names), None)
    owners: Sequence[str | None] = [None] * table.num_rows if key is None else decode_texts(table[key])
    present: set[str | None] = set().union(*(_common(each[key], table[key]) for each in valid if key is not None))
    has_paths = root is not None and "image" in table.column_names
    images = decode_texts(table["image"]) if has_paths else [None] * table.num_rows
    samples = []
    for cause, row, owner, image in zip(rejected.causes, table[ROW].to_pylist(), owners, images, strict=True):
        path = os.path.join(root or "", image) if image else f"{file}, row {row}"
        cause = f"{file}, row {row}: {cause}" if image else cause
        samples.append(BadSample(path, cause, lost=int(owner is None or owner not in present), advice=advice))
        present.add(owner)
    return samples


def drop_rows(
    table: pa.Table, causes: Mapping[int, str], file: str, root: str | None = None, advice: str = ""
) -> tuple[pa.Table, list[BadSample]]:
    """The rows that are left and a bad sample for each other row; see `reject_rows` and `rejected_samples`."""
    valid, rejected = reject_rows(table, causes)
    return valid, rejected_samples(rejected, [valid], file, root, advice)


def _common(column: pa.ChunkedArray, values: pa.ChunkedArray) -> set[str]:
    """The texts that are in both columns."""
    value_set = pc.cast(pc.drop_null(values), column.type)
    return set(pc.unique(column.filter(pc.is_in(column, value_set=value_set))).to_pylist())


def explode_lists(table: pa.Table, file: str) -> tuple[pa.Table, RejectedRows]:
    """Turn each row with a list of texts (targets, weights) into one row per text; rows without texts are rejected."""
    present = [name for name in LIST_COLUMNS if name in table.column_names]
    lists = [name for name in present if _is_list(table[name].type)]
    if not lists:
        return reject_rows(table, {})
    if len(lists) < len(present):
        raise DataError(f"{file!r}: {' and '.join(present)} must all be lists or none; only {', '.join(lists)} is one.")
    lengths = [pc.fill_null(pc.list_value_length(table[name]), 0) for name in lists]
    causes = dict.fromkeys(true_indices(pc.equal(lengths[0], 0)), "its list of texts is empty")
    for name, others in zip(lists[1:], lengths[1:], strict=True):
        for row in true_indices(pc.not_equal(lengths[0], others)):
            causes[row] = f"{lengths[0][row]} texts but {others[row]} {name}s"
    table, rejected = reject_rows(table, causes)
    rows = pc.list_parent_indices(table[lists[0]].combine_chunks())
    values = {name: pc.list_flatten(table[name]) for name in lists}
    return pa.table({n: values[n] if n in values else table[n].take(rows) for n in table.column_names}), rejected


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def has_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """bool (rows,), False where a text is null, empty or blank."""
    return pc.fill_null(pc.and_not(pc.not_equal(column, ""), pc.utf8_is_space(column)), False)


def text_problems(column: pa.ChunkedArray) -> dict[int, str]:
    """`text_problem` of each text of a column, by row; null counts as empty."""
    lengths = pc.fill_null(pc.utf8_length(column), 0)
    long = true_indices(pc.greater(lengths, MAX_CHARACTERS))
    problems = {row: too_long(lengths[row].as_py()) for row in long}
    problems |= dict.fromkeys(true_indices(pc.match_substring(column, "\0")), "holds NUL characters")
    problems |= dict.fromkeys(true_indices(pc.invert(has_text(column))), "is empty")
    return problems


def reject_invalid_utf8(table: pa.Table) -> tuple[pa.Table, RejectedRows]:
    """Reject the rows with a text that is not UTF-8."""
    causes: dict[int, str] = {}
    for name in table.column_names:
        if pa.types.is_string(table[name].type) or pa.types.is_large_string(table[name].type):
            causes |= dict.fromkeys(invalid_utf8(table[name]), f"the column of its {name} is not UTF-8")
    return reject_rows(table, causes)


def invalid_utf8(column: pa.ChunkedArray) -> list[int]:
    """The rows of a text column whose bytes are not UTF-8; Arrow's other text functions fail on such a column."""
    rows, start = [], 0
    for chunk in column.chunks:
        try:
            chunk.validate(full=True)
        except pa.ArrowInvalid:
            values = decode_texts(chunk)
            rows += [start + i for i in true_indices(chunk.is_valid()) if values[i] is None]
        start += len(chunk)
    return rows


def decode_texts(column: pa.ChunkedArray | pa.Array) -> list[str | None]:
    """The texts of a column in Python; None for null and for bytes that are not UTF-8."""
    return [_decode(value) for value in column.cast(pa.large_binary()).to_pylist()]


def _decode(value: bytes | None) -> str | None:
    try:
        return None if value is None else value.decode("utf-8")
    except UnicodeDecodeError:
        return None


def parse_weights(column: pa.ChunkedArray) -> tuple[pa.ChunkedArray, dict[int, str]]:
    """float64 (rows,) of a column of texts, null where they are not numbers, and the rows whose weight is invalid."""
    try:
        numbers = pc.cast(column, pa.float64())
    except pa.ArrowInvalid:  # at least one text is not a number
        numbers = pa.chunked_array([pa.array([_number(value) for value in column.to_pylist()], pa.float64())])
    valid = pc.fill_null(pc.and_(pc.greater_equal(numbers, 0), pc.is_finite(numbers)), False)
    invalid = true_indices(pc.invert(valid))
    return numbers, {row: f"holds {column[row].as_py()!r}, which is not a weight of at least 0" for row in invalid}


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def true_indices(mask: pa.ChunkedArray | pa.Array) -> list[int]:
    """The indices at which a bool column is True; null counts as False."""
    indices: list[int] = np.flatnonzero(np.asarray(pc.fill_null(mask, False))).tolist()
    return indices
