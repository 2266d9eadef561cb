"""Images in folders named after what they show; their sentences are made from templates."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from velm.data.base import Dataset, Record, Records
from velm.data.formats.folder import IMAGES, SPLITS, check_fractions, hashed_split
from velm.data.tables.records import existing_path
from velm.errors import DataError, MissingSplitError
from velm.util import did_you_mean

__all__ = ["ImageFolder"]


class ImageFolder(Dataset):
    """Folders of classes: `train/tench/7.jpg` is 'a photo of a tench.', with its class in the record's metadata.

    Where there are subfolders `train`, `val`, `test`, they are the splits. Else the split of an image follows
    from a hash of its name: it never changes when others are added. Classes are numbered over all splits together.

    Args:
        path: the folder of the splits, or of the classes.
        templates: sentences of each image, {} standing for the name of its class.
        labels: csv with the columns folder and label, the classes in its order; None makes the names from those of
            the folders, '_' becoming a blank, in the order of the alphabet.
        val_fraction: part of the images for 'val', in [0, 1), where there are no subfolders for splits.
        test_fraction: part of the images for 'test', in [0, 1), likewise.
    """

    def __init__(
        self,
        *,
        path: str,
        templates: list[str] | None = None,
        labels: str | None = None,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
    ) -> None:
        if not os.path.isdir(path):
            raise DataError(f"There is no folder {path!r}.")
        check_fractions(val_fraction, test_fraction)
        self.templates = ["a photo of a {}."] if templates is None else templates
        wrong = [template for template in self.templates if template.count("{}") != 1]
        if wrong or not self.templates:
            raise ValueError(
                f"templates are sentences with one {{}} for the class, such as 'a photo of a {{}}.'; got "
                f"{wrong[0] if wrong else 'none'!r}."
            )
        self.path, self.labels = path, labels
        self.val_fraction, self.test_fraction = val_fraction, test_fraction
        self._own = [split for split in SPLITS if os.path.isdir(os.path.join(path, split))]

    def split(self, name: str) -> ClassRecords:
        names = self._names()
        folders = {folder: number for number, folder in enumerate(names)}
        splits: dict[str, list[tuple[str, int]]] = {split: [] for split in self._own or SPLITS}
        for root in self._own or [""]:
            for folder in _subfolders(os.path.join(self.path, root)):
                for path in _images(self.path, os.path.join(root, folder)):
                    split = root or hashed_split(path, self.val_fraction, self.test_fraction)
                    splits[split].append((path, folders[folder]))
        found = splits.get(name)
        if not found:
            listed = ", ".join(f"{split!r} ({len(some)} images)" for split, some in splits.items() if some)
            raise MissingSplitError(f"{self.path!r} has no split {name!r}. It has: {listed or 'no images at all'}.")
        paths = pa.array([path for path, _ in found], pa.large_string())
        kind = np.array([number for _, number in found], np.int32)
        return ClassRecords(self.path, paths, kind, list(names.values()), self.templates)

    def _names(self) -> dict[str, str]:
        """The name of each folder's class, in the order of the classes."""
        present = sorted({f for root in self._own or [""] for f in _subfolders(os.path.join(self.path, root))})
        if not present:
            raise DataError(f"{self.path!r} has no folders of classes, such as {os.path.join(self.path, 'dog')!r}.")
        if self.labels is None:
            return {folder: folder.replace("_", " ") for folder in present}
        names = self._read_labels(self.labels)
        unnamed = [folder for folder in present if folder not in names]
        if unnamed:
            raise DataError(
                f"{self.labels!r} has no row for {len(unnamed)} of the folders of {self.path!r}: "
                f"{', '.join(unnamed[:3])}.{did_you_mean(unnamed[0], names)}"
            )
        return names

    def _read_labels(self, path: str) -> dict[str, str]:
        with open(existing_path(path), encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file)
            columns = rows.fieldnames or []
            if not {"folder", "label"} <= set(columns):
                raise DataError(f"{path!r} must have the columns folder and label; it has: {', '.join(columns)}.")
            return {row["folder"]: row["label"] for row in rows}


class ClassRecords(Records):
    """Images and their classes; sentences are made when they are asked for."""

    def __init__(
        self, root: str, paths: pa.Array, kind: np.ndarray, names: Sequence[str], templates: Sequence[str]
    ) -> None:
        """`paths`: large_string (images,), from `root`; `kind`: int (images,), places in `names`."""
        self._root, self._paths, self._kind, self._templates = root, paths, kind, templates
        self.classes = names  # of all splits, also those that this one has no image of
        self.text_counts = np.full(len(kind), len(templates))

    def __len__(self) -> int:
        return len(self._kind)

    def record(self, place: int) -> Record:
        path, number = self._paths[place].as_py(), int(self._kind[place])
        name = self.classes[number]
        return Record(
            image_id=path,
            image=os.path.join(self._root, path),
            texts=tuple(template.replace("{}", name) for template in self._templates),
            metadata={"class": name, "class_index": number},
        )


def _subfolders(folder: str) -> list[str]:
    return sorted(e.name for e in os.scandir(folder) if e.is_dir() and not e.name.startswith("."))


def _images(root: str, folder: str) -> list[str]:
    """The images in a folder and below, as sorted paths from `root`."""
    return sorted(
        os.path.relpath(os.path.join(where, file), root)
        for where, _, files in os.walk(os.path.join(root, folder))
        for file in files
        if os.path.splitext(file)[1].lower() in IMAGES
    )
