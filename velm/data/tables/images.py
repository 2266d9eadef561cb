"""Which rows of a table show the same image, and which images are in two splits."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from velm.data.bad_samples import places
from velm.data.tables.columns import has_text, same_text
from velm.data.tables.duplicates import first_alike
from velm.data.tables.rows import ROW
from velm.errors import DataError

__all__ = ["overlap", "image_numbers"]


def image_numbers(columns: Mapping[str, pa.ChunkedArray], file: str) -> np.ndarray | None:
    """int (rows,), which image each row shows, numbered in the order they come; None, each one of its own.

    Args:
        columns: 'image_id' tells images apart, else 'image' does; a row without either is an image of its own.
        file: for the message.

    Raises:
        DataError: an id has two images.
    """
    key = next((name for name in ("image_id", "image") if name in columns), None)
    first = None if key is None else first_alike(columns[key])
    if first is None:
        return None
    own = np.arange(len(first), dtype=first.dtype)
    if key == "image":
        nameless = places(pc.invert(has_text(columns["image"])))
        first[nameless] = nameless
    elif "image" in columns:
        _forbid_two(columns, np.flatnonzero(first != own), first, file)
    numbers = np.cumsum(first == own, dtype=first.dtype) - 1
    numbered: np.ndarray = numbers[first]
    return numbered


def _forbid_two(columns: Mapping[str, pa.ChunkedArray], later: np.ndarray, first: np.ndarray, file: str) -> None:
    image = columns["image"]
    differ = later[~same_text(image, later, first[later])]
    if len(differ):
        row = int(differ[0])
        one, other = image[int(first[row])], image[row]
        raise DataError(
            f"{file!r}, row {columns[ROW][row]}: image id {columns['image_id'][row].as_py()!r} has two "
            f"images, {one.as_py()!r} and {other.as_py()!r}. One id, one image."
        )


def overlap(tables: Mapping[str | None, pa.Table], key: str) -> tuple[int, dict[str, list[str | None]]]:
    """Images that are in more than one split: how many there are, and the first ones with their splits.

    Args:
        tables: by split, with `ROW`.
        key: the column that tells images apart; what is blank tells nothing.
    """
    names, columns = list(tables), [table[key] for table in tables.values()]
    if len(names) < 2:
        return 0, {}
    everything = pa.chunked_array([chunk for column in columns for chunk in column.chunks])
    first = first_alike(everything)
    if first is None:
        return 0, {}
    split_of = np.repeat(np.arange(len(names), dtype=np.int16), [len(column) for column in columns])
    elsewhere = np.flatnonzero(split_of != split_of[first])
    elsewhere = elsewhere[has_text(everything).to_numpy()[elsewhere]]
    twice = np.unique(first[elsewhere])
    rows = np.concatenate([twice, elsewhere])
    rows = rows[np.argsort(np.concatenate([table[ROW].to_numpy() for table in tables.values()])[rows], kind="stable")]
    owners, begin = np.unique(first[rows], return_index=True)
    some = {}
    for owner in owners[np.argsort(begin)][:3].tolist():
        splits = dict.fromkeys(split_of[rows[first[rows] == owner]].tolist())
        some[everything[owner].as_py()] = [names[split] for split in splits]
    return len(twice), some
