"""Datasets of Hugging Face's `datasets`: from the hub, or a folder that `save_to_disk` wrote."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from velm._compat import dataset_fingerprint
from velm.data.bad_samples import check_bad_share
from velm.data.base import Dataset, EncodedImage
from velm.data.tables.records import TableRecords, factorize, row_names
from velm.data.tables.validate import ROW, drop_rows, explode_lists, rejected_samples, text_problems
from velm.errors import DataError, MissingPackageError, MissingSplitError
from velm.util import did_you_mean

__all__ = ["HFDataset"]


class HFDataset(Dataset):
    """A row is an image with one caption or a list of them; images stay encoded until they are used.

    Args:
        model_name: a folder that `save_to_disk` wrote, or a dataset's id on the hub.
        config: variant of the dataset on the hub, if it has several.
        revision: version on the hub, a commit or a tag; None: the newest.
        image_column: column of images; None for data without images.
        text_column: column of captions, a text or a list of texts.
        target_column: column of the texts to generate, one for each caption; None: the captions.
        image_id_column: column of image ids; None: each row is an image of its own.
        splits: names of the splits in the dataset, such as `{val: validation}`, which is known.
    """

    def __init__(
        self,
        *,
        model_name: str,
        config: str | None = None,
        revision: str | None = None,
        image_column: str | None = "image",
        text_column: str = "text",
        target_column: str | None = None,
        image_id_column: str | None = None,
        splits: dict[str, str] | None = None,
    ) -> None:
        self.model_name, self.config, self.revision = model_name, config, revision
        columns = {"text": text_column, "target": target_column, "image_id": image_id_column}
        self.names = {ours: theirs for ours, theirs in columns.items() if theirs is not None}
        self.image_column, self.splits = image_column, splits or {}
        self._loaded: dict[str, Any] | None = None

    def split(self, name: str) -> TableRecords:
        data, title = self._rows(name), self._title(name)
        table = data.select_columns(list(self.names.values())).with_format("arrow")[:]
        table = pa.table({ours: table[theirs] for ours, theirs in self.names.items()})
        table = table.append_column(ROW, pa.array(np.arange(1, table.num_rows + 1)))
        table, empty = explode_lists(table, title)
        bad_samples = rejected_samples(empty, [table], title)
        for ours, theirs in self.names.items():
            table = table.set_column(table.column_names.index(ours), ours, self._as_text(table[ours], theirs))
            causes = {row: f"column {theirs!r} {problem}" for row, problem in text_problems(table[ours]).items()}
            table, dropped = drop_rows(table, causes, title)
            bad_samples += dropped
        if not table.num_rows:
            check_bad_share(bad_samples, 0, self.max_bad, title)
        columns = {column: table[column].combine_chunks() for column in table.column_names}
        encoded_image = None
        if self.image_column is not None:
            columns["image"], encoded_image = row_names(columns[ROW]), self._encoded_images(data, name)
        image_index = factorize(columns.get("image_id", columns[ROW]))
        records = TableRecords(columns, image_index, encoded_image=encoded_image)
        check_bad_share(bad_samples, len(records), self.max_bad, title)
        records.bad_samples = bad_samples
        return records

    def _rows(self, name: str) -> Any:
        """The rows of a split, as a `datasets.Dataset` that has all columns in use."""
        if self._loaded is None:
            self._loaded = self._load()
        default = "validation" if name == "val" and "val" not in self._loaded else name
        theirs = self.splits.get(name, default)
        if theirs not in self._loaded or not len(self._loaded[theirs]):
            ours = {"validation": "val"} | {there: our for our, there in self.splits.items()}
            listed = ", ".join(f"{ours.get(s, s)!r} ({len(d)} rows)" for s, d in self._loaded.items())
            raise MissingSplitError(
                f"The dataset {self.model_name!r} has no rows of split {theirs!r}. It has: {listed}. If a split has "
                f"another name there, say so: splits: {{{name}: <its name>}}."
            )
        data = self._loaded[theirs]
        for role, column in {**self.names, "image": self.image_column}.items():
            if column is not None and column not in data.column_names:
                raise DataError(
                    f"The dataset {self.model_name!r} has no column {column!r}."
                    f"{did_you_mean(column, data.column_names)} "
                    f"Its columns: {', '.join(data.column_names)}. Set {role}_column to the right one."
                )
        return data

    def _load(self) -> dict[str, Any]:
        try:
            import datasets
        except ImportError as cause:
            raise MissingPackageError(
                "hf/* data needs datasets, which is not installed: pip install 'velm[hf]'"
            ) from cause
        local = os.path.isdir(self.model_name)
        try:
            if local:
                loaded = datasets.load_from_disk(self.model_name)
            else:
                loaded = datasets.load_dataset(self.model_name, self.config, revision=self.revision)
        except Exception as error:  # the hub, the disk and the data raise many types
            where = "the folder" if local else "from the hub (there is no such folder here)"
            raise DataError(
                f"Cannot load the dataset {self.model_name!r}, {where}: {type(error).__name__}: {error}"
            ) from error
        return dict(loaded) if isinstance(loaded, dict) else {"train": loaded}

    def _encoded_images(self, data: Any, name: str) -> _RowImages:
        import datasets

        kind = data.features[self.image_column]
        if isinstance(kind, dict):
            fits = bool({"bytes", "path"} & kind.keys())
        else:
            kinds = ("binary", "large_binary", "string", "large_string")
            fits = isinstance(kind, datasets.Image) or getattr(kind, "dtype", None) in kinds
        if not fits:
            raise DataError(f"Column {self.image_column!r} of {self._title(name)} must hold images, not {kind}.")
        data = data.select_columns([self.image_column]).cast_column(self.image_column, datasets.Image(decode=False))
        return _RowImages(data, self._title(name))

    def _as_text(self, column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
        if pa.types.is_nested(column.type) or pa.types.is_binary(column.type):
            raise DataError(f"Column {name!r} of the dataset {self.model_name!r} must hold text, not {column.type}.")
        return pc.cast(column, pa.large_string())

    def _title(self, split: str) -> str:
        return f"{self.model_name}/{split}"


@dataclass(frozen=True)
class _RowBytes:
    """Returns the file of the image of a row; each process that unpickles it maps the files of `data` itself."""

    data: Any = field(compare=False, repr=False)
    fingerprint: str
    row: int

    def __call__(self) -> bytes:
        (stored,) = self.data[self.row].values()
        if stored is None or (stored["bytes"] is None and stored["path"] is None):
            raise DataError("the row has no image")
        if stored["bytes"] is not None:
            return bytes(stored["bytes"])
        with open(stored["path"], "rb") as file:
            return file.read()


class _RowImages:
    """Maps a row, counted from 0, to its image; `data` has one column."""

    def __init__(self, data: Any, title: str) -> None:
        self._data, self._title = data, title

    def __call__(self, index: int) -> EncodedImage:
        load = _RowBytes(self._data, dataset_fingerprint(self._data), index)
        return EncodedImage(f"{self._title}, row {index + 1}", load)
