"""The splits of a table: by a column, or images held out by a hash; and the images that are in two of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from velm.data.held_out import path_key, position
from velm.data.tables.records import factorize, row_names
from velm.data.tables.validate import ROW, has_text
from velm.errors import DataError

__all__ = ["by_split", "find_overlap", "held_out_splits"]

MAX_SPLITS = 10_000  # a column with more distinct values does not name splits


def held_out_splits(table: pa.Table, val_fraction: float, test_fraction: float, seed: int) -> pa.Array:
    """large_string (rows,), the split of each row; rows of one image, by path or by id, are in one split.

    A function of the seed and the image's path without extension (else its id, else the row), so that it does not
    change when images are added. Each fraction above 0 has at least one image.
    """
    name = next((name for name in ("image", "image_id") if name in table.column_names), ROW)
    names = row_names(table[ROW])
    if name != ROW:
        names = pc.if_else(has_text(table[name]), table[name], names)
    image = factorize(names)
    if name == "image" and "image_id" in table.column_names:
        image_id = factorize(table["image_id"])
        image = image[np.unique(image_id, return_index=True)[1][image_id]]  # of the first row with the id
    groups, first, group = np.unique(image, return_index=True, return_inverse=True)
    keys = names.take(pa.array(first)).to_pylist()
    if name == "image":
        keys = [path_key(key) for key in keys]
    places = np.array([position(key, seed) for key in keys])
    splits = np.full(len(groups), "train", object)
    splits[places < val_fraction + test_fraction] = "test"
    splits[places < val_fraction] = "val"
    for split, fraction in (("val", val_fraction), ("test", test_fraction)):
        if fraction > 0 and not (splits == split).any() and (splits == "train").sum() > 1:
            splits[np.where(splits == "train", places, 1).argmin()] = split
    return pa.array(splits, pa.large_string()).take(pa.array(group))


def by_split(table: pa.Table, file: str, column: str) -> dict[str | None, pa.Table]:
    """The rows of each split; all rows under None if there is no 'split'.

    Args:
        table: with 'split', if the data has splits.
        file: for messages, as `column`, the name of 'split' in it.
    """
    if "split" not in table.column_names:
        return {None: table}
    splits, table = table["split"], table.drop_columns("split")
    names = pc.unique(splits).to_pylist()
    if len(names) > MAX_SPLITS:
        raise DataError(
            f"Column {column!r} of {file!r} holds more than {MAX_SPLITS:,} different values; name the one that says "
            f"the split."
        )
    masks = ((name, splits.is_null() if name is None else pc.equal(splits, name)) for name in names)
    return {name: table.filter(mask) if len(names) > 1 else table for name, mask in masks}


def find_overlap(tables: Mapping[str | None, pa.Table], key: str) -> tuple[int, dict[str, list[str | None]]]:
    """Images that are in more than one split: how many, and the first three in file order with their splits.

    Args:
        tables: by split, with `ROW`.
        key: the column that identifies images; blank values are ignored.
    """
    if len(tables) < 2:
        return 0, {}
    counts = pa.chunked_array([pc.unique(table[key]) for table in tables.values()]).value_counts()
    values = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    shared = values.filter(has_text(values))
    rows = []
    if len(shared):
        for split, table in tables.items():
            found = table.filter(pc.is_in(table[key], value_set=shared))
            rows += [(*row, split) for row in zip(found[ROW].to_pylist(), found[key].to_pylist(), strict=True)]
    splits: dict[str, list[str | None]] = {}
    for _, image, split in sorted(rows, key=lambda row: row[0]):
        if image in splits or len(splits) < 3:
            splits.setdefault(image, []).append(split)
    return len(shared), {image: list(dict.fromkeys(names)) for image, names in splits.items()}
