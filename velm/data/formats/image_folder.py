"""Images in folders named after their class; captions are made from templates."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from velm.data.base import Dataset, Record, Records
from velm.data.formats.split_folders import split_folders
from velm.data.held_out import SPLITS, check_fractions, hashed_split
from velm.data.images.names import is_hidden, list_images, no_images
from velm.data.tables.validate import existing_path
from velm.errors import DataError, MissingSplitError
from velm.util import did_you_mean

__all__ = ["ImageFolder"]


class ImageFolder(Dataset):
    """Folders of classes: `train/tench/7.jpg` has the caption 'a photo of a tench.' and its class in the metadata.

    Subfolders `train`, `val` (or `valid`, `validation`, `dev`), `test` are the splits, if there are any. Otherwise the
    split of an image is a function of a hash of its name, and does not change when images are added. All splits
    share the numbers of the classes.

    Args:
        path: the folder of the splits, or of the classes.
        templates: captions of each image; {} is replaced by the name of its class.
        labels: csv with the columns folder and label, which gives the order of the classes; None: the names are those
            of the folders with blanks for '_', in alphabetical order.
        val_fraction: share of the images in 'val', in [0, 1), if there are no subfolders for splits.
        test_fraction: share of the images in 'test', in [0, 1), likewise.
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
                f"templates are captions with one {{}} for the class, such as 'a photo of a {{}}.'; got "
                f"{wrong[0] if wrong else 'none'!r}."
            )
        self.path, self.labels = path, labels
        self.val_fraction, self.test_fraction = val_fraction, test_fraction
        self._split_folders = split_folders(path)

    def split(self, name: str) -> ClassRecords:
        names = self._names()
        folders = {folder: number for number, folder in enumerate(names)}
        splits: dict[str, list[tuple[str, int]]] = {split: [] for split in self._split_folders or SPLITS}
        for split, root in (self._split_folders or {"": ""}).items():
            for folder in _subfolders(os.path.join(self.path, root)):
                for path in list_images(self.path, os.path.join(root, folder)):
                    part = split or hashed_split(path, self.val_fraction, self.test_fraction)
                    splits[part].append((path, folders[folder]))
        images = splits.get(name)
        if not images:
            listed = ", ".join(f"{split!r} ({len(some)} images)" for split, some in splits.items() if some)
            raise MissingSplitError(f"{self.path!r} has no split {name!r}. It has: {listed or no_images(self.path)}.")
        paths = pa.array([path for path, _ in images], pa.large_string())
        labels = np.array([number for _, number in images], np.int32)
        return ClassRecords(self.path, paths, labels, names, self.templates)

    def _names(self) -> dict[str, str]:
        """The name of each folder's class, in the order of the classes."""
        roots = [os.path.join(self.path, root) for root in self._split_folders.values() or [""]]
        present = sorted({folder for root in roots for folder in _subfolders(root)})
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
    """Images and their classes; captions are built on access."""

    def __init__(
        self, root: str, paths: pa.Array, labels: np.ndarray, names: Mapping[str, str], templates: Sequence[str]
    ) -> None:
        """`paths`: large_string (images,), from `root`; `labels`: int (images,), indices of `names`, by folder."""
        self._root, self._paths, self._labels, self._templates = root, paths, labels, templates
        self.classes, self.folders = list(names.values()), list(names)  # of all splits
        self.text_counts = np.full(len(labels), len(templates))

    def __len__(self) -> int:
        return len(self._labels)

    def record(self, index: int) -> Record:
        path, number = self._paths[index].as_py(), int(self._labels[index])
        name = self.classes[number]
        return Record(
            image_id=path,
            image=os.path.join(self._root, path),
            texts=tuple(template.replace("{}", name) for template in self._templates),
            metadata={"class": name, "class_index": number},
        )


def _subfolders(folder: str) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not is_hidden(entry.name))
