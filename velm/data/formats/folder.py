"""A folder of images, each with a .txt of the same name beside it."""

from __future__ import annotations

import hashlib
import os

import numpy as np
import pyarrow as pa

from velm.data.bad_samples import BadSample, check_bad_share, sound_texts
from velm.data.base import Dataset
from velm.data.tables.records import TableRecords
from velm.errors import DataError, MissingSplitError

__all__ = ["IMAGES", "SPLITS", "Folder", "check_fractions", "hashed_split"]

SPLITS = ("train", "val", "test")
IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


class Folder(Dataset):
    """Images with their sentences beside them: `dog.jpg` and `dog.txt`, one sentence a line.

    Where there are subfolders `train`, `val`, `test`, they are the splits. Else the split of an image follows
    from a hash of its name: it never changes when others are added.

    Args:
        path: the folder; its subfolders are looked into.
        extension: of the files of sentences, UTF-8.
        val_fraction: part of the images for 'val', in [0, 1), where there are no subfolders for splits.
        test_fraction: part of the images for 'test', in [0, 1), likewise.
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
            listed = ", ".join(f"{split!r} ({len(found)} images)" for split, found in images.items() if found)
            raise MissingSplitError(f"{self.path!r} has no split {name!r}. It has: {listed or 'no images at all'}.")
        texts: dict[str, list[str]] = {}
        bad_samples: list[BadSample] = []
        for path in paths:
            sound, bad = self._texts(path)
            bad_samples += bad
            if sound:
                texts[path] = sound
        check_bad_share(bad_samples, len(texts), self.max_bad, f"split {name!r} of {self.path!r}")
        image_index = np.repeat(np.arange(len(texts)), [len(sentences) for sentences in texts.values()])
        image = pa.array(list(texts), pa.large_string()).take(pa.array(image_index))
        text = pa.array([text for sentences in texts.values() for text in sentences], pa.large_string())
        records = TableRecords({"text": text, "image": image}, image_index, self.path)
        records.bad_samples = bad_samples
        return records

    def _splits(self) -> dict[str, list[str]]:
        """The images of each split, as sorted paths from the folder."""
        own = [split for split in SPLITS if os.path.isdir(os.path.join(self.path, split))]
        if own:
            return {split: self._images(split) for split in own}
        images: dict[str, list[str]] = {split: [] for split in SPLITS}
        for path in self._images("."):
            images[hashed_split(path, self.val_fraction, self.test_fraction)].append(path)
        return images

    def _images(self, folder: str) -> list[str]:
        return sorted(
            os.path.normpath(os.path.relpath(os.path.join(where, file), self.path))
            for where, _, files in os.walk(os.path.join(self.path, folder))
            for file in files
            if os.path.splitext(file)[1].lower() in IMAGES
        )

    def _texts(self, image: str) -> tuple[list[str], list[BadSample]]:
        """The sentences of an image, and what is wrong with others of them, or with the whole file."""
        image = os.path.join(self.path, image)
        path = os.path.splitext(image)[0] + self.extension
        try:
            with open(path, encoding="utf-8") as file:
                return sound_texts([line.strip() for line in file if line.strip()], image)
        except FileNotFoundError:
            return [], [BadSample(image, f"there is no {self.extension} file beside it", advice="Write one.")]
        except UnicodeDecodeError as error:
            return [], [BadSample(image, f"{path!r} is not UTF-8: {error}")]


def check_fractions(val_fraction: float, test_fraction: float) -> None:
    """See that both are parts of a whole that leave something for training.

    Raises:
        ValueError: they are not.
    """
    if val_fraction < 0 or test_fraction < 0 or val_fraction + test_fraction >= 1:
        raise ValueError(
            f"val_fraction {val_fraction} and test_fraction {test_fraction} must not be negative, and must leave "
            f"something for training: their sum must be below 1."
        )


def hashed_split(path: str, val_fraction: float, test_fraction: float) -> str:
    """The split of an image by a hash of its path without the ending, whatever other images there are."""
    name = os.path.splitext(path)[0].replace(os.sep, "/")
    place = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
    if place < val_fraction:
        return "val"
    return "test" if place < val_fraction + test_fraction else "train"
