"""What tables of image paths and sentences share, one row a sentence: columns, splits, image ids, checks.

Columns stay in Arrow; a `Record` is made when it is asked for, so a split costs little more than its text.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from velm.data.bad_samples import BadSample, as_weights, check_bad_share, odd_texts, places
from velm.data.base import Dataset, EncodedImage
from velm.data.tables.columns import has_text
from velm.data.tables.images import image_numbers, overlap
from velm.data.tables.missing import missing_images
from velm.data.tables.records import TableRecords, distinct, existing_path, opened
from velm.data.tables.rows import (
    ROW,
    Odd,
    named_faults,
    numbered,
    take_out,
    text_values,
    unnumbered,
    without_undecodable,
)
from velm.data.tables.sorting import index_type
from velm.data.tables.splits import by_split
from velm.errors import DataError, MissingSplitError
from velm.util import did_you_mean

__all__ = ["Table"]

NAMELESS = "Set missing_image to 'drop' to leave rows without an image out, or to 'blank' to show a black one."
OUTSIDE = "Set root to another folder, or allow_outside to true to let paths lead out of it."


class Table(Dataset):
    """What the formats share; a subclass reads the file.

    Args:
        path: the file; `.gz` is unpacked while reading (not Parquet).
        root: folder that image paths are relative to; None takes the file's own.
        image_column: column of image paths; None for data without images.
        text_column: column of sentences; in JSON lines and Parquet a row may hold a list of them.
        target_column: column of what to write for the sentence (translation, answer); None where there is none.
        weight_column: column of numbers, how often a sentence of an image is to come beside the others, with
            `captions: weighted`; None where they are alike.
        split_column: column that says which split a row is in; None puts every row into 'train'.
        image_id_column: column of image ids: rows with the same one are one image; None goes by the
            image's path, and by the row without images.
        splits: what the file calls a split, where it is not 'train', 'val', 'test': `{val: dev}`. Values of
            the split column that are not named here keep their names.
        missing_image: what to do with a row without an image path: 'skip', it is one of the bad ones; 'error';
            'drop' it and say nothing; 'blank' shows a black image.
        check_files: look whether every image of a split is there when the split is opened, instead of when it is
            looked at.
        allow_outside: let image paths lead out of `root` (absolute, or by '..').
        allow_overlap: let an image be in two splits.
    """

    def __init__(
        self,
        *,
        path: str,
        root: str | None = None,
        image_column: str | None = "image_path",
        text_column: str = "text",
        target_column: str | None = None,
        weight_column: str | None = None,
        split_column: str | None = "split",
        image_id_column: str | None = "image_id",
        splits: dict[str, str] | None = None,
        missing_image: Literal["skip", "error", "drop", "blank"] = "skip",
        check_files: bool = True,
        allow_outside: bool = False,
        allow_overlap: bool = False,
    ) -> None:
        self.path = existing_path(path)
        self.root = os.path.dirname(os.path.abspath(path)) if root is None else root
        if not os.path.isdir(self.root):
            raise DataError(f"root {self.root!r}, the folder of the images, does not exist.")
        self.names = {
            name: column
            for name, column in {
                "image": image_column,
                "text": text_column,
                "target": target_column,
                "weight": weight_column,
                "split": split_column,
                "image_id": image_id_column,
            }.items()
            if column is not None
        }
        self.splits = splits or {}
        self.missing_image, self.check_files = missing_image, check_files
        self.allow_outside, self.allow_overlap = allow_outside, allow_overlap
        self._read: dict[str | None, tuple[pa.Table, range | None]] | None = None  # by split, with numbers of rows
        self._unread: list[tuple[str | None, BadSample]] = []  # with the split that each is of, where that is known

    @abstractmethod
    def columns(self) -> list[str]:
        """The names of the file's columns."""

    @abstractmethod
    def read(self, columns: list[str], bad_samples: list[BadSample]) -> Iterator[pa.Table]:
        """Some of the file's columns, in blocks of rows, with `ROW`; `bad_samples` gets the rows that are none."""

    def encoded(self) -> Callable[[int], EncodedImage] | None:
        """Gives the image of a row, from 0, where they lie in the file itself; None where it has paths."""
        return None

    def split(self, name: str) -> TableRecords:
        where, theirs = f"split {name!r} of {self.path!r}", self.splits.get(name, name)
        table = self._rows(name)
        bad_samples = [bad_sample for split, bad_sample in self._unread if split in (None, theirs)]
        table, bad = self._sound(table)
        bad_samples += bad
        if not table.num_rows:
            check_bad_share(bad_samples, 0, self.max_bad, where)
        columns = dict(zip(table.column_names, table.columns, strict=True))
        image = self._images(columns)
        if self.encoded() is None and ("image_id" in columns or ("image" in columns and self.missing_image != "blank")):
            del columns[ROW]  # every record has a name of its own
        records = TableRecords(columns, image, self.root, self.encoded())
        if self.check_files and "image" in columns:
            bad_samples += missing_images(self.root, distinct(columns["image"]))
        check_bad_share(bad_samples, len(records), self.max_bad, where)
        records.bad_samples = bad_samples
        return records

    def _rows(self, name: str) -> pa.Table:
        tables, theirs = self._tables(), self.splits.get(name, name)
        rows = sum(table.num_rows for table, _ in tables.values())
        if not rows and self._unread:
            check_bad_share([bad_sample for _, bad_sample in self._unread], 0, self.max_bad, repr(self.path))
        if "split" not in self.names:
            if name == "train" and rows:
                return numbered(*tables[None])
            raise MissingSplitError(
                f"{self.path!r} has no split {name!r}: split_column is null, so its {rows} rows are 'train'. "
                f"Name the column that holds the split."
            )
        if theirs not in tables:
            ours = {theirs: our for our, theirs in self.splits.items()}
            listed = ", ".join(
                f"{ours.get(split or '', split)!r} ({t.num_rows} rows)" for split, (t, _) in tables.items()
            )
            raise MissingSplitError(
                f"{self.path!r} has no rows of split {theirs!r} in column "
                f"{self.names['split']!r}. It has: {listed or 'no rows at all'}. "
                f"If a split has another name there, say so: splits: {{{name}: <its name>}}."
            )
        return numbered(*tables[theirs])

    def _tables(self) -> dict[str | None, tuple[pa.Table, range | None]]:
        """By split the columns in use under our names, one row a sentence, `unnumbered`; read once."""
        if self._read is None:
            self._require_columns()
            unread: list[BadSample] = []
            odd: tuple[list[Odd], list[Odd]] = ([], [])
            tables = by_split(self._blocks(unread, *odd), f"Column {self.names.get('split')!r} of {self.path!r}")
            self._unread = [(None, bad_sample) for bad_sample in unread] + self._unusable(*odd, list(tables.values()))
            if not self.allow_overlap:
                self._forbid_overlap(tables)
            self._read = {split: unnumbered(table) for split, table in tables.items()}
        return self._read

    def _blocks(self, unread: list[BadSample], undecodable: list[Odd], empty: list[Odd]) -> Iterator[pa.Table]:
        """What is read, as text and under our names; rows that cannot be used at all are put aside."""
        for raw in self.read(list(dict.fromkeys(self.names.values())), unread):
            named = {ours: raw[theirs] for ours, theirs in self.names.items()}
            table, strange = without_undecodable(pa.table({**named, ROW: raw[ROW]}))
            table, without = opened(table, self.path)
            for put, odd in ((undecodable, strange), (empty, without)):
                if odd.causes:
                    put.append(Odd(self._as_text(odd.table), odd.causes))
            yield self._as_text(table)

    def _unusable(
        self, undecodable: list[Odd], empty: list[Odd], kept: list[pa.Table]
    ) -> list[tuple[str | None, BadSample]]:
        """What is wrong with rows that were put aside, and the splits of those that are not UTF-8."""
        odd = [*undecodable, *empty]
        if not odd:
            return []
        table, count = pa.concat_tables([each.table for each in odd]), sum(len(each.causes) for each in undecodable)
        causes = [cause for each in odd for cause in each.causes]
        bad_samples = named_faults(Odd(table, causes), kept, self.path, self._folder())
        splits = text_values(table["split"].slice(0, count)) if "split" in self.names else [None] * count
        return [(None, bad_sample) for bad_sample in bad_samples[count:]] + list(
            zip(splits, bad_samples[:count], strict=True)
        )

    def _require_columns(self) -> None:
        present = self.columns()
        for ours, theirs in self.names.items():
            if theirs not in present:
                option = f"{ours}_column"
                absent = "" if ours == "text" else f", or {option} to null if there is none"
                raise DataError(
                    f"{self.path!r} has no column {theirs!r}.{did_you_mean(theirs, present)} "
                    f"Its columns: {', '.join(present)}. Set {option} to the right one{absent}."
                )

    def _as_text(self, table: pa.Table) -> pa.Table:
        for place, name in enumerate(table.column_names):
            column = table[name]
            if name == ROW:
                kind = pa.from_numpy_dtype(index_type(pc.max(column).as_py() or 0))
            elif pa.types.is_nested(column.type) or pa.types.is_binary(column.type):
                raise DataError(f"Column {self.names[name]!r} of {self.path!r} must hold text, not {column.type}.")
            else:
                kind = pa.string()
            table = table.set_column(place, name, pc.cast(column, kind))
        return table

    def _forbid_overlap(self, tables: dict[str | None, pa.Table]) -> None:
        key = next((name for name in ("image_id", "image") if name in self.names), None)
        if "split" not in self.names or key is None or not tables:
            return
        count, some = overlap(tables, key)
        if count:
            listed = [f"{name!r} in {' and '.join(map(str, splits))}" for name, splits in some.items()]
            raise DataError(
                f"{count} images of {self.path!r} are in more than one split: {'; '.join(listed)}"
                f"{' ...' if count > 3 else ''}. Figures on such a split say nothing. "
                f"Mend the column {self.names['split']!r}, or set allow_overlap to true."
            )

    def _sound(self, table: pa.Table) -> tuple[pa.Table, list[BadSample]]:
        """The rows that can be used, and what is wrong with the others."""
        bad_samples: list[BadSample] = []
        for name in ("text", "target", "image_id"):
            if name in self.names:
                table, odd = take_out(table, self._odd_texts(table, name), self.path, self._folder())
                bad_samples += odd
        if "weight" in self.names:
            numbers, odd_weights = as_weights(table["weight"])
            table = table.set_column(table.column_names.index("weight"), "weight", numbers)
            causes = {place: f"column {self.names['weight']!r} holds {what}" for place, what in odd_weights.items()}
            table, odd = take_out(table, causes, self.path, self._folder())
            bad_samples += odd
        if "image" not in self.names:
            return table, bad_samples
        table, nameless = take_out(table, self._nameless(table), self.path, self._folder(), NAMELESS)
        if self.missing_image == "drop":
            nameless = []
            if not table.num_rows and not bad_samples:
                raise DataError(f"No row of {self.path!r} names an image in column {self.names['image']!r}.")
        if self.allow_outside:
            return table, bad_samples + nameless
        table, outside = take_out(table, self._outside(table), self.path, self._folder(), OUTSIDE)
        return table, bad_samples + nameless + outside

    def _odd_texts(self, table: pa.Table, name: str) -> dict[int, str]:
        odd = odd_texts(table[name])
        return {place: f"column {self.names[name]!r} {what}" for place, what in odd.items()}

    def _nameless(self, table: pa.Table) -> dict[int, str]:
        if self.missing_image == "blank":
            return {}
        missing = places(pc.invert(has_text(table["image"])))
        if missing and self.missing_image == "error":
            raise DataError(
                f"{self.path!r}, row {table[ROW][missing[0]]} (the first below the header is 1): column "
                f"{self.names['image']!r} names no image. {len(missing)} rows of this split are like that. "
                f"{NAMELESS}"
            )
        return dict.fromkeys(missing, f"column {self.names['image']!r} names no image")

    def _outside(self, table: pa.Table) -> dict[int, str]:
        """Rows whose image's path leads out of the root."""
        suspects = places(pc.match_substring_regex(table["image"], r"^[/\\]|^[A-Za-z]:|\.\."))
        paths = {place: table["image"][place].as_py() for place in suspects}
        return {
            place: f"the image {path!r} is outside {self.root!r}, the folder that paths are relative to"
            for place, path in paths.items()
            if os.path.isabs(path) or os.path.normpath(path).split(os.sep)[0] == os.pardir
        }

    def _folder(self) -> str | None:
        """What the paths in the column of images start from; None where they are no paths."""
        return self.root

    def _images(self, columns: dict[str, pa.ChunkedArray]) -> np.ndarray | None:
        """As `image_numbers`."""
        return image_numbers(columns, self.path)
