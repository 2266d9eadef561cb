"""Which rows of a table show the same picture, and which pictures are in two splits."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from velm.data.alike import first_alike
from velm.data.base import DataError
from velm.data.columns import has_text, same_text
from velm.data.faults import places
from velm.data.rows import ROW

__all__ = ["overlap", "picture_numbers"]


def picture_numbers(columns: Mapping[str, pa.ChunkedArray], file: str) -> np.ndarray | None:
    """int (rows,), which picture each row shows, numbered in the order they come; None, each one of its own.

    Args:
        columns: 'image_id' tells pictures apart, else 'image' does; a row without either is a picture of its own.
        file: for the message.

    Raises:
        DataError: an id has two pictures.
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
            f"{file!r}, row {columns[ROW][row]}: picture id {columns['image_id'][row].as_py()!r} has two "
            f"pictures, {one.as_py()!r} and {other.as_py()!r}. One id, one picture."
        )


def overlap(keys: Mapping[str | None, pa.ChunkedArray]) -> tuple[int, dict[str, list[str | None]]]:
    """Pictures that are in more than one split: how many there are, and some with their splits.

    Args:
        keys: by split what tells its pictures apart; a blank one tells nothing.
    """
    names, columns = list(keys), list(keys.values())
    everything = pa.chunked_array([chunk for column in columns for chunk in column.chunks], columns[0].type)
    first = first_alike(everything) if len(names) > 1 else None
    if first is None:
        return 0, {}
    split_of = np.repeat(np.arange(len(names), dtype=np.int16), [len(column) for column in columns])
    elsewhere = np.flatnonzero(split_of != split_of[first])
    owners = first[elsewhere]
    twice = np.unique(owners[has_text(everything).to_numpy()[owners]])
    some = {}
    for owner in twice[:3].tolist():
        splits = [split_of[owner], *np.unique(split_of[elsewhere[owners == owner]])]
        some[everything[owner].as_py()] = [names[split] for split in splits]
    return len(twice), some
