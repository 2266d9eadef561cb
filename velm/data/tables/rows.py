"""Rows of a table that cannot be used: taken out, each with its name and what is wrong with it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from velm.data.bad_samples import BadSample, undecodable
from velm.data.tables.indices import as_array

__all__ = [
    "ROW", "Odd", "named_faults", "numbered", "parted", "take_out", "text_values", "unnumbered",
    "without_undecodable",
]  # fmt: skip

ROW = "__row__"  # column: the row's number in its file, from 1, the header not counted


@dataclass(frozen=True)
class Odd:
    """Rows that were taken out of a table.

    Attributes:
        table: the rows, with `ROW`; of the columns 'image_id', 'image' and 'split' those that there are.
        causes: what is wrong with each.
    """

    table: pa.Table
    causes: list[str]


def take_out(
    table: pa.Table, causes: Mapping[int, str], file: str, root: str | None = None, advice: str = ""
) -> tuple[pa.Table, list[BadSample]]:
    """The rows that are left, and a bad_sample for each of the others, in their order.

    Args:
        table: with `ROW`; rows of the same 'image_id', else of the same 'image', are one image, which is lost with
            the last of its rows.
        causes: place of a row, from 0, to what is wrong with it.
        file: that the rows are of.
        root: folder that the paths of 'image' start from; None where they are no paths.
        advice: what to do where many rows are like that.
    """
    kept, odd = parted(table, causes)
    return kept, named_faults(odd, [kept], file, root, advice)


def parted(table: pa.Table, causes: Mapping[int, str]) -> tuple[pa.Table, Odd]:
    """The rows that are left, the others; chunks without any of the others are not copied."""
    names = [name for name in (ROW, "image_id", "image", "split") if name in table.column_names]
    if not causes:
        return table, Odd(table.select(names).slice(0, 0), [])
    out = sorted(causes)
    mask = np.ones(table.num_rows, dtype=bool)
    mask[out] = False
    kept, odd, start = [], [], 0
    for batch in table.to_batches():
        fine = mask[start : start + batch.num_rows]
        start += batch.num_rows
        kept.append(batch if fine.all() else batch.filter(pa.array(fine)))
        if not fine.all():
            odd.append(batch.filter(pa.array(~fine)))
    left = pa.Table.from_batches(kept, table.schema)
    return left, Odd(pa.Table.from_batches(odd, table.schema).select(names), [causes[place] for place in out])


def named_faults(
    odd: Odd, kept: Sequence[pa.Table], file: str, root: str | None = None, advice: str = ""
) -> list[BadSample]:
    """A bad_sample for each of the rows that were taken out, the tables that are left being `kept`; see `take_out`."""
    table = odd.table
    if not table.num_rows:
        return []
    key = next((name for name in ("image_id", "image") if name in table.column_names), None)
    owners = [None] * table.num_rows if key is None else text_values(table[key])
    there = set() if key is None else set().union(*(_present(each[key], table[key]) for each in kept))
    images = text_values(table["image"]) if root is not None and "image" in table.column_names else [None] * len(owners)
    bad_samples = []
    for what, row, owner, image in zip(odd.causes, table[ROW].to_pylist(), owners, images, strict=True):
        path = f"{file}, row {row}" if not image else os.path.join(root or "", image)
        cause = what if not image else f"{file}, row {row}: {what}"
        bad_samples.append(BadSample(path, cause, lost=int(owner is None or owner not in there), advice=advice))
        there.add(owner)
    return bad_samples


def without_undecodable(table: pa.Table) -> tuple[pa.Table, Odd]:
    """The rows whose texts are all UTF-8; the others."""
    causes: dict[int, str] = {}
    for name in table.column_names:
        if pa.types.is_string(table[name].type) or pa.types.is_large_string(table[name].type):
            causes |= dict.fromkeys(undecodable(table[name]), f"the column of its {name} is not UTF-8")
    return parted(table, causes)


def unnumbered(table: pa.Table) -> tuple[pa.Table, range | None]:
    """A table without `ROW`, and its numbers, where they follow one another; else the table as it is, and None."""
    numbers = table[ROW].to_numpy()
    if not len(numbers) or (numbers[1:] - numbers[:-1] != 1).any():
        return table, None
    return table.drop_columns([ROW]), range(int(numbers[0]), int(numbers[-1]) + 1)


def numbered(table: pa.Table, numbers: range | None) -> pa.Table:
    """The table that `unnumbered` had."""
    return table if numbers is None else table.append_column(ROW, pa.array(as_array(numbers)))


def _present(kept: pa.ChunkedArray, odd: pa.ChunkedArray) -> set[Any]:
    """Which of the values of `odd` are in `kept` too."""
    wanted = pc.cast(pc.drop_null(odd), kept.type).combine_chunks()
    return set(pc.unique(kept.filter(pc.is_in(kept, value_set=wanted))).to_pylist())


def text_values(column: pa.ChunkedArray) -> list[Any]:
    """As Python has them, None for a text that cannot be decoded."""
    values = []
    for each in column:
        try:
            values.append(each.as_py())
        except UnicodeDecodeError:
            values.append(None)
    return values
