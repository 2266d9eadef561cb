"""The table formats' common part: options, columns, splits and validation; one row per caption.

Columns stay in Arrow and are read once, however many splits are opened; workers that are forked share them.
"""

from __future__ import annotations

import os
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from velm.data.bad_samples import BadSample, check_bad_share
from velm.data.base import Dataset, DetectedFormat, EncodedImage
from velm.data.held_out import SPLITS, check_fractions
from velm.data.tables.captions import combine_columns, open_lists
from velm.data.tables.columns import find_column, find_text_columns, matches
from velm.data.tables.encoding import OTHER_ENCODING
from velm.data.tables.layouts import suggest_layout
from velm.data.tables.paths import DOWNLOAD, download_first, replace_paths, unusable_paths
from velm.data.tables.records import TableRecords, image_index
from velm.data.tables.splits import by_split, find_overlap, held_out_splits
from velm.data.tables.validate import (
    ROW,
    RejectedRows,
    decode_texts,
    drop_rows,
    existing_path,
    explode_lists,
    has_text,
    parse_weights,
    reject_invalid_utf8,
    rejected_samples,
    text_problems,
    true_indices,
)
from velm.errors import DataError, MissingSplitError
from velm.util import did_you_mean

__all__ = ["Table"]

NAMELESS = "Set missing_image to 'drop' to leave rows without an image out, or to 'blank' to show a black one."


@dataclass(kw_only=True, eq=False, repr=False)
class Table(Dataset):
    """A table of image paths and captions; a subclass reads the file.

    Args:
        path: the file; `.gz` is decompressed while reading (not Parquet).
        root: folder that image paths are relative to; None: the folder of the file.
        image_column: column of image paths; None for data without images.
        text_column: column of captions, a list of such columns, or a pattern, `caption_*`. A row may hold a list of
            captions; a list that is written as text, "['a', 'b']", is opened.
        target_column: column of the texts to generate (translations, answers); None: the captions.
        weight_column: column of the captions' sampling weights, for `captions: weighted`; None: uniform.
        split_column: column that names the split of a row. None, or no column 'split' in the file, puts every row into
            'train', except those that are held out.
        image_id_column: column of image ids: rows with the same id show one image. None, or no column 'image_id' in the
            file: rows with the same path do, and without images each row is a record of its own.
        splits: names of the splits in the file, where they are not 'train', 'val', 'test': `{val: dev}`. Values of
            the split column that are not named here keep their names.
        val_fraction: fraction of the images that is 'val', in [0, 1), if there is no split column.
        test_fraction: fraction of the images that is 'test', in [0, 1), likewise.
        seed: of the images that are held out.
        missing_image: what to do with a row without an image path: 'skip' counts it as bad; 'error' stops; 'drop'
            leaves it out silently; 'blank' shows a black image.
        check_files: check that every image of a split exists when the split is opened, not when it is decoded.
        allow_outside: let image paths lead out of `root` (absolute, or by '..').
        allow_overlap: let an image be in two splits.

    Column names are found without blanks around them and, if that is unique, in another case.
    """

    path: str
    root: str | None = None
    image_column: str | None = "image_path"
    text_column: str | list[str] = "text"
    target_column: str | None = None
    weight_column: str | None = None
    split_column: str | None = "split"
    image_id_column: str | None = "image_id"
    splits: dict[str, str] | None = None
    val_fraction: float = 0.0
    test_fraction: float = 0.0
    seed: int = 0
    missing_image: Literal["skip", "error", "drop", "blank"] = "skip"
    check_files: bool = True
    allow_outside: bool = False
    allow_overlap: bool = False

    def __post_init__(self) -> None:
        existing_path(self.path)
        self.image_root = os.path.dirname(os.path.abspath(self.path)) if self.root is None else self.root
        if not os.path.isdir(self.image_root):
            raise DataError(f"root {self.image_root!r}, the folder of the images, does not exist.")
        check_fractions(self.val_fraction, self.test_fraction)
        texts = [self.text_column] if isinstance(self.text_column, str) else list(self.text_column)
        if not texts:
            raise DataError("text_column is empty; name the column of the captions.")
        columns = {name: getattr(self, f"{name}_column") for name in ("image", "target", "weight", "split", "image_id")}
        names = {name: [column] for name, column in columns.items() if column is not None}
        self.wanted: dict[str, list[str]] = names | {"text": texts}  # names or patterns of columns by their use
        self.names = {name: ", ".join(columns) for name, columns in self.wanted.items()}  # in the file, once it is open
        self.text_columns = texts
        self.detected: list[str] = []  # what was detected in the file and is not the default
        self._tables: dict[str | None, pa.Table] | None = None  # by the file's name of the split, before validation
        self._valid: dict[str | None, tuple[pa.Table, list[BadSample]]] = {}  # likewise, of the splits opened so far
        self._sizes: dict[str | None, int] = {}  # rows of each split, invalid ones included
        self._rejected: list[tuple[str | None, BadSample]] = []  # with their split; None: unknown

    @abstractmethod
    def column_names(self) -> list[str]:
        """The names of the file's columns."""

    @abstractmethod
    def read(self, columns: list[str], bad_samples: list[BadSample]) -> Iterator[pa.Table]:
        """Some of the file's columns and `ROW`, block by block; lines that are not rows are added to `bad_samples`."""

    def encoded_image(self) -> Callable[[int], EncodedImage] | None:
        """A function from a row, counted from 0, to its image, where the file holds the images; None: it has paths."""
        return None

    def split(self, name: str) -> TableRecords:
        where, split, tables = f"split {name!r} of {self.path!r}", self._split_name(name), self._read()
        if split not in self._valid:
            self._valid[split] = self._validate(tables[split])
            del tables[split]
        table, invalid = self._valid[split]
        bad_samples = [bad_sample for owner, bad_sample in self._rejected if owner in (None, split)] + invalid
        if not table.num_rows:
            check_bad_share(bad_samples, 0, self.max_bad, where)
        if self.check_files and "image" in table.column_names:
            table, missing = replace_paths(table, self.image_root, self.path)
            bad_samples += missing
        columns = dict(zip(table.column_names, table.columns, strict=True))
        index, image_indices = self._image_index(table)
        records = TableRecords(columns, index, self.image_root, self.encoded_image())
        records.image_indices = image_indices
        check_bad_share(bad_samples, len(records), self.max_bad, where)
        records.bad_samples = bad_samples
        pa.default_memory_pool().release_unused()
        return records

    def _image_index(self, table: pa.Table) -> tuple[np.ndarray, np.ndarray | None]:
        return image_index(table, self.path)

    def _paths_root(self) -> str | None:
        """The folder that the paths in the image column start from; None if they are not paths."""
        return self.image_root

    def _split_name(self, name: str) -> str | None:
        """The file's name of a split; None without a split column.

        Raises:
            MissingSplitError: the split has no rows; the message lists those that have.
        """
        self._read()
        rows, ours = sum(self._sizes.values()), self.splits or {}
        if not rows and self._rejected:
            check_bad_share([bad_sample for _, bad_sample in self._rejected], 0, self.max_bad, repr(self.path))
        split = None if "split" not in self.names and not self._holds_out() else ours.get(name, name)
        if split not in self._sizes or (split is None and name != "train"):
            raise MissingSplitError(self._missing_split(name, split))
        return split

    def _missing_split(self, name: str, split: str | None) -> str:
        names = {theirs: our for our, theirs in (self.splits or {}).items()}
        listed = ", ".join(f"{names.get(s or '', s)!r} ({count} rows)" for s, count in self._sizes.items())
        if "split" in self.names:
            return (
                f"{self.path!r} has no rows of split {split!r} in column {self.names['split']!r}. "
                f"It has: {listed or 'no rows at all'}. "
                f"If a split has another name there, say so: splits: {{{name}: <its name>}}."
            )
        fraction = f"Set {name}_fraction, to 0.1 for example, to hold images out" if name in SPLITS[1:] else ""
        if split is not None:
            return f"{self.path!r} has no split {name!r}. It has: {listed}. {fraction}."
        cause = "split_column is null" if self.split_column is None else f"it has no column {self.split_column!r}"
        return (
            f"{self.path!r} has no split {name!r}: {cause}, so its {sum(self._sizes.values())} rows are 'train'. "
            f"{fraction + ', or name' if fraction else 'Name'} the column that holds the split by split_column."
        )

    def _holds_out(self) -> bool:
        return self.val_fraction + self.test_fraction > 0

    def _read(self) -> dict[str | None, pa.Table]:
        """The columns in use under VELM's names, by split, one row per caption; the file is read once."""
        if self._tables is None:
            try:
                self._resolve_columns()
            except DataError as error:
                known = suggest_layout(self.path, self.root, type(self).__name__.lower())
                raise DataError(f"{error} {known}".strip()) from error
            unreadable: list[BadSample] = []
            used = [theirs for ours, theirs in self.names.items() if ours != "text"] + self.text_columns
            blocks = [self._rename(block) for block in self.read([*dict.fromkeys(used)], unreadable)]
            tables, rejected = self._prepare(blocks) if blocks else ({}, [])
            if not self.allow_overlap:
                self._forbid_overlap(tables)
            self._rejected = [(None, bad_sample) for bad_sample in unreadable] + rejected
            self._sizes = {split: table.num_rows for split, table in tables.items()}
            self._tables = tables
            if self.detected:
                listed = "; ".join(dict.fromkeys(self.detected))
                warnings.warn(f"Detected in {self.path!r}: {listed}.", DetectedFormat, stacklevel=2)
        return self._tables

    def _resolve_columns(self) -> None:
        """Find every column in use; the default ones of splits and ids may be absent."""
        present, names = self.column_names(), {}
        others = [
            name for name in present if not any(matches(name, each) for some in self.wanted.values() for each in some)
        ]
        for ours, (theirs, *_) in self.wanted.items():
            optional = (ours, theirs) in (("split", "split"), ("image_id", "image_id"))
            absent = not any(matches(name, theirs) for name in present)
            if optional and absent and not did_you_mean(theirs, others):
                continue
            if ours == "text":
                self.text_columns = find_text_columns(self.path, self.wanted["text"], present)
                names[ours] = ", ".join(self.text_columns)
            else:
                names[ours] = find_column(self.path, f"{ours}_column", theirs, present)
        self.names = names
        if "split" in names and self._holds_out():
            raise DataError(
                f"val_fraction and test_fraction hold images out of a table without splits, and {self.path!r} has the "
                f"column {names['split']!r}. Set split_column to null, or both fractions to 0."
            )

    def _rename(self, block: pa.Table) -> pa.Table:
        table = {ours: block[theirs] for ours, theirs in self.names.items() if ours != "text"}
        names = ["text"] if len(self.text_columns) == 1 else self._text_parts()
        table |= {name: block[theirs] for name, theirs in zip(names, self.text_columns, strict=True)}
        return pa.table({**table, ROW: block[ROW]})

    def _text_parts(self) -> list[str]:
        return [f"text {number}" for number in range(len(self.text_columns))]

    def _prepare(self, blocks: list[pa.Table]) -> tuple[dict[str | None, pa.Table], list[tuple[str | None, BadSample]]]:
        """The rows by split, and a bad sample, with its split, for each row that has no readable text."""
        table = pa.concat_tables(blocks, promote_options="permissive")
        blocks.clear()
        table, undecodable = reject_invalid_utf8(table)
        if len(self.text_columns) > 1:
            table = combine_columns(self._as_text(table), self._text_parts(), "text")
        table, opened = open_lists(table)
        if opened:
            self.detected.append(f"lists in column {self.names['text']!r}, opened as several texts")
        table, empty = explode_lists(table, self.path)
        table = self._as_text(table)
        if "split" not in self.names and self._holds_out():
            splits = held_out_splits(table, self.val_fraction, self.test_fraction, self.seed)
            table = table.append_column("split", splits)
        tables = by_split(table, self.path, self.names.get("split", "split"))
        del table
        rejected: list[tuple[str | None, BadSample]] = []
        for each, advice in ((undecodable, OTHER_ENCODING), (empty, "")):
            each = RejectedRows(self._as_text(each.table), each.causes)
            samples = rejected_samples(each, [*tables.values()], self.path, self._paths_root(), advice)
            has_split = "split" in each.table.column_names
            owners = decode_texts(each.table["split"]) if has_split else [None] * len(samples)
            rejected += zip(owners, samples, strict=True)
        return tables, rejected

    def _as_text(self, table: pa.Table) -> pa.Table:
        """All columns but `ROW` as large_string, which may hold more than 2 GiB."""
        for index, name in enumerate(table.column_names):
            kind = table[name].type
            if pa.types.is_nested(kind) or pa.types.is_binary(kind):
                raise DataError(f"Column {self.names.get(name, name)!r} of {self.path!r} must hold text, not {kind}.")
            if name != ROW:
                table = table.set_column(index, name, table[name].cast(pa.large_string()))
        return table

    def _forbid_overlap(self, tables: dict[str | None, pa.Table]) -> None:
        if "split" not in self.names:
            return
        key = next((name for name in ("image_id", "image") if name in self.names), None)
        count, examples = find_overlap(tables, key) if key is not None else (0, {})
        if count:
            listed = [f"{name!r} in {' and '.join(map(str, splits))}" for name, splits in examples.items()]
            raise DataError(
                f"{count} images of {self.path!r} are in more than one split: {'; '.join(listed)}"
                f"{' ...' if count > 3 else ''}. Metrics on such a split are not meaningful. "
                f"Correct the column {self.names['split']!r}, or set allow_overlap to true."
            )

    def _validate(self, table: pa.Table) -> tuple[pa.Table, list[BadSample]]:
        """The rows that can be used, with weights as numbers, and a bad sample for each of the others."""
        bad_samples: list[BadSample] = []

        def drop(causes: dict[int, str], column: str, advice: str = "", silent: bool = False) -> None:
            nonlocal table
            named = {row: f"column {self.names[column]!r} {cause}" for row, cause in causes.items()}
            table, dropped = drop_rows(table, named, self.path, self._paths_root(), advice)
            bad_samples.extend([] if silent else dropped)

        for name in ("text", "target", "image_id"):
            if name in self.names:
                drop(text_problems(table[name]), name)
        if "weight" in self.names:
            weights, invalid = parse_weights(table["weight"])
            table = table.set_column(table.column_names.index("weight"), "weight", weights)
            drop(invalid, "weight")
        if "image" in self.names:
            drop(self._without_image(table), "image", NAMELESS, silent=self.missing_image == "drop")
            if self.missing_image == "drop" and not table.num_rows and not bad_samples:
                raise DataError(f"No row of {self.path!r} names an image in column {self.names['image']!r}.")
            if self._paths_root() is not None:
                drop(*self._unusable_paths(table))
        return table, bad_samples

    def _without_image(self, table: pa.Table) -> dict[int, str]:
        if self.missing_image == "blank":
            return {}
        rows = true_indices(pc.invert(has_text(table["image"])))
        if rows and self.missing_image == "error":
            raise DataError(
                f"{self.path!r}, row {table[ROW][rows[0]]} (the first below the header is 1): column "
                f"{self.names['image']!r} names no image. {len(rows)} rows of this split are like that. {NAMELESS}"
            )
        return dict.fromkeys(rows, "names no image")

    def _unusable_paths(self, table: pa.Table) -> tuple[dict[int, str], str, str]:
        """What is wrong with the image paths that are URLs or outside of `root`, by row; the column; what to do.

        Raises:
            DataError: every path is a URL.
        """
        causes, advice = unusable_paths(table["image"], self.image_root, self.allow_outside)
        if advice == DOWNLOAD and len(causes) == table.num_rows:
            raise DataError(
                download_first(self.path, self.names["image"], self.names["text"], sum(self._sizes.values()))
            )
        return causes, "image", advice
