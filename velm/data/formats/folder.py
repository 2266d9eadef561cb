"""A folder of images, each with a text file of the same name beside it."""

from __future__ import annotations

import os

from velm.data.bad_samples import BadSample, check_bad_share, usable_texts
from velm.data.base import Dataset
from velm.data.formats.split_folders import split_folders
from velm.data.held_out import SPLITS, check_fractions, hashed_split
from velm.data.images.names import list_images, no_images
from velm.data.tables.records import TableRecords, records_from_texts
from velm.errors import DataError, MissingSplitError

__all__ = ["Folder"]


class Folder(Dataset):
    """Images with their captions beside them: `dog.jpg` and `dog.txt`, one caption per line.

    Subfolders `train`, `val` (or `valid`, `validation`, `dev`), `test` are the splits, if there are any. Otherwise the
    split of an image is a function of a hash of its name, and does not change when images are added.

    Args:
        path: the folder; subfolders are searched too, hidden files and folders left out.
        extension: of the text files, UTF-8.
        val_fraction: share of the images in 'val', in [0, 1), if there are no subfolders for splits.
        test_fraction: share of the images in 'test', in [0, 1), likewise.
    """

    def __init__(
        self, *, path: str, extension: str = ".txt", val_fraction: float = 0.1, test_fraction: float = 0.1
    ) -> None:
        if not os.path.isdir(path):
            raise DataError(f"There is no folder {path!r}.")
        check_fractions(val_fraction, test_fraction)
        self.path, self.extension = path, extension if extension.startswith(".") else f".{extension}"
        self.val_fraction, self.test_fraction = val_fraction, test_fraction

    def split(self, name: str) -> TableRecords:
        images = self._splits()
        paths = images.get(name, [])
        if not paths:
            listed = ", ".join(f"{split!r} ({len(some)} images)" for split, some in images.items() if some)
            raise MissingSplitError(f"{self.path!r} has no split {name!r}. It has: {listed or no_images(self.path)}.")
        texts: dict[str, list[str]] = {}
        bad_samples: list[BadSample] = []
        for path in paths:
            usable, bad = self._texts(path)
            bad_samples += bad
            if usable:
                texts[path] = usable
        check_bad_share(bad_samples, len(texts), self.max_bad, f"split {name!r} of {self.path!r}")
        records = records_from_texts(list(texts.values()), list(texts), self.path)
        records.bad_samples = bad_samples
        return records

    def _splits(self) -> dict[str, list[str]]:
        """The images of each split, as sorted paths from the folder."""
        subfolders = split_folders(self.path)
        if subfolders:
            return {split: list_images(self.path, folder) for split, folder in subfolders.items()}
        images: dict[str, list[str]] = {split: [] for split in SPLITS}
        for path in list_images(self.path):
            images[hashed_split(path, self.val_fraction, self.test_fraction)].append(path)
        return images

    def _texts(self, image: str) -> tuple[list[str], list[BadSample]]:
        """The usable captions of an image, and a bad sample for each other caption or for the whole file."""
        image = os.path.join(self.path, image)
        path = os.path.splitext(image)[0] + self.extension
        try:
            with open(path, encoding="utf-8") as file:
                return usable_texts([line.strip() for line in file if line.strip()], image)
        except FileNotFoundError:
            return [], [BadSample(image, f"there is no {self.extension} file beside it", advice="Write one.")]
        except UnicodeDecodeError as error:
            return [], [BadSample(image, f"{path!r} is not UTF-8: {error}")]
