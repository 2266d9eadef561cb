"""Data sets of Hugging Face's `datasets`: from the hub, or a folder that `save_to_disk` wrote."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from velm._compat import dataset_fingerprint
from velm.data.bad_samples import check_bad_share, odd_texts
from velm.data.base import Dataset, EncodedImage
from velm.data.tables.records import TableRecords, codes, flattened, row_names, whole
from velm.data.tables.rows import ROW, take_out
from velm.errors import DataError, MissingPackageError, MissingSplitError
from velm.util import did_you_mean

__all__ = ["HFDataset"]


class HFDataset(Dataset):
    """A row is an image, with one sentence or a list of them; images stay as they are stored until looked at.

    Args:
        model_name: a folder that `save_to_disk` wrote, or a data set's id on the hub.
        config: which of the hub's variants of the data set, where it has several.
        revision: which version on the hub, a commit or tag; None takes the newest.
        image_column: column of images; None for data without.
        text_column: column of sentences, a text or a list of them.
        target_column: column of what to write for the sentence, shaped likewise; None where there is none.
        image_id_column: column of image ids; None goes by the row.
        splits: what the data set calls a split: `{val: validation}`; that one is known.
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
        data, title = self._of_split(name), self._title(name)
        table = data.select_columns(list(self.names.values())).with_format("arrow")[:]
        table = pa.table({ours: table[theirs] for ours, theirs in self.names.items()})
        table = table.append_column(ROW, pa.array(np.arange(1, table.num_rows + 1)))
        table, bad_samples = flattened(table, title)
        for ours, theirs in self.names.items():
            table = table.set_column(table.column_names.index(ours), ours, self._as_text(table[ours], theirs))
            odd = {place: f"column {theirs!r} {what}" for place, what in odd_texts(table[ours]).items()}
            table, bad = take_out(table, odd, title)
            bad_samples += bad
        if not table.num_rows:
            check_bad_share(bad_samples, 0, self.max_bad, title)
        columns = {column: whole(table[column]) for column in table.column_names}
        encoded = None
        if self.image_column is not None:
            columns["image"], encoded = row_names(columns[ROW]), self._encoded(data, name)
        records = TableRecords(columns, self._images(columns), encoded=encoded)
        check_bad_share(bad_samples, len(records), self.max_bad, title)
        records.bad_samples = bad_samples
        return records

    def _images(self, columns: dict[str, pa.Array]) -> np.ndarray:
        """int (rows,): rows of the same id, or without ids of the same row of the data set, are one image."""
        return codes(columns.get("image_id", columns[ROW]))

    def _of_split(self, name: str) -> Any:
        """The split with the columns in use, each of them there."""
        if self._loaded is None:
            self._loaded = self._load()
        usual = "validation" if name == "val" and "val" not in self._loaded else name
        theirs = self.splits.get(name, usual)
        if theirs not in self._loaded or not len(self._loaded[theirs]):
            ours = {"validation": "val"} | {there: our for our, there in self.splits.items()}
            listed = ", ".join(f"{ours.get(s, s)!r} ({len(d)} rows)" for s, d in self._loaded.items())
            raise MissingSplitError(
                f"The data set {self.model_name!r} has no rows of split {theirs!r}. It has: {listed}. If a split has "
                f"another name there, say so: splits: {{{name}: <its name>}}."
            )
        data = self._loaded[theirs]
        for role, column in {**self.names, "image": self.image_column}.items():
            if column is not None and column not in data.column_names:
                raise DataError(
                    f"The data set {self.model_name!r} has no column {column!r}."
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
                found = datasets.load_from_disk(self.model_name)
            else:
                found = datasets.load_dataset(self.model_name, self.config, revision=self.revision)
        except Exception as error:  # the hub, the disk and the data each fail in their own ways
            where = "the folder" if local else "from the hub (there is no such folder here)"
            raise DataError(
                f"Cannot load the data set {self.model_name!r}, {where}: {type(error).__name__}: {error}"
            ) from error
        return dict(found) if isinstance(found, dict) else {"train": found}

    def _encoded(self, data: Any, name: str) -> _Images:
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
        return _Images(data, self._title(name))

    def _as_text(self, column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
        if pa.types.is_nested(column.type) or pa.types.is_binary(column.type):
            raise DataError(f"Column {name!r} of the data set {self.model_name!r} must hold text, not {column.type}.")
        return pc.cast(column, pa.large_string())

    def _title(self, split: str) -> str:
        return f"{self.model_name}/{split}"


@dataclass(frozen=True)
class _Stored:
    """The file of an image in a row; `data` maps its files anew in each process that it is sent to."""

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


class _Images:
    """The images of a split by row; `data` has the one column."""

    def __init__(self, data: Any, title: str) -> None:
        self._data, self._title = data, title

    def __call__(self, index: int) -> EncodedImage:
        stored = _Stored(self._data, dataset_fingerprint(self._data), index)
        return EncodedImage(f"{self._title}, row {index + 1}", stored)
