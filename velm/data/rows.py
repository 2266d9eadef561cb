"""Rows of a table that cannot be used: taken out, each with its name and what is wrong with it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from velm.data.faults import Fault, undecodable

__all__ = ["ROW", "take_out", "without_undecodable"]

ROW = "__row__"  # column: the row's number in its file, from 1, the header not counted


def take_out(
    table: pa.Table, causes: Mapping[int, str], file: str, root: str | None = None, advice: str = ""
) -> tuple[pa.Table, list[Fault]]:
    """The rows that are left, and a fault for each of the others, in their order.

    Args:
        table: with `ROW`; rows of the same 'image_id', else of the same 'image', are one picture, which is lost with
            the last of its rows.
        causes: place of a row, from 0, to what is wrong with it.
        file: that the rows are of.
        root: folder that the paths of 'image' start from; None where they are no paths.
        advice: what to do where many rows are like that.
    """
    if not causes:
        return table, []
    out = sorted(causes)
    mask = np.ones(table.num_rows, dtype=bool)
    mask[out] = False
    kept, odd = table.filter(pa.array(mask)), table.take(pa.array(out))
    key = next((name for name in ("image_id", "image") if name in table.column_names), None)
    owners = [None] * len(out) if key is None else _values(odd[key])
    there = set() if key is None else _present(kept[key], odd[key])
    images = _values(odd["image"]) if root is not None and "image" in odd.column_names else [None] * len(out)
    faults = []
    for place, row, owner, image in zip(out, odd[ROW].to_pylist(), owners, images, strict=True):
        path = f"{file}, row {row}" if not image else os.path.join(root or "", image)
        cause = causes[place] if not image else f"{file}, row {row}: {causes[place]}"
        faults.append(Fault(path, cause, lost=int(owner is None or owner not in there), advice=advice))
        there.add(owner)
    return kept, faults


def without_undecodable(table: pa.Table, file: str, root: str | None) -> tuple[pa.Table, list[Fault], list[Any]]:
    """The rows whose texts are all UTF-8, a fault for each of the others, and the split that each of those names."""
    causes: dict[int, str] = {}
    for name in table.column_names:
        if pa.types.is_string(table[name].type) or pa.types.is_large_string(table[name].type):
            causes |= dict.fromkeys(undecodable(table[name]), f"the column of its {name} is not UTF-8")
    kept, faults = take_out(table, causes, file, root)
    named = "split" in table.column_names and causes
    return kept, faults, _values(table["split"].take(pa.array(sorted(causes)))) if named else [None] * len(causes)


def _present(kept: pa.ChunkedArray, odd: pa.ChunkedArray) -> set[Any]:
    """Which of the values of `odd` are in `kept` too."""
    wanted = pc.drop_null(odd).combine_chunks()
    return set(pc.unique(kept.filter(pc.is_in(kept, value_set=wanted))).to_pylist())


def _values(column: pa.ChunkedArray) -> list[Any]:
    """As Python has them, None for a text that cannot be decoded."""
    values = []
    for each in column:
        try:
            values.append(each.as_py())
        except UnicodeDecodeError:
            values.append(None)
    return values
