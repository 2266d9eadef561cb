"""Names of splits in the names of files and folders: train, validation, dev, test."""

from __future__ import annotations

import os
import re
import warnings

from velm.data.held_out import SPLITS
from velm.data.images.names import is_hidden, list_images
from velm.errors import DataError

__all__ = ["split_folders", "split_word"]

WORDS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
SPLIT_WORD = re.compile(rf"(?<![a-z])({'|'.join(sorted(WORDS, key=len, reverse=True))})(?![a-z])")


def split_word(name: str) -> tuple[str, str, str] | None:
    """(before, split, after) of a file name that names a split: ('captions_', 'train', '2017.json'); else None.

    'valid', 'validation' and 'dev' are 'val', 'training' is 'train', 'testing' is 'test'.
    """
    match = SPLIT_WORD.search(name)
    return None if match is None else (name[: match.start()], WORDS[match.group()], name[match.end() :])


def split_folders(path: str) -> dict[str, str]:
    """The subfolder of each split, in the order train, val, test; {} if no subfolder is named after one.

    Other words than train, val and test count only beside train: a class may be called 'valid'. Warns about images
    beside the folders of splits, which are in no split.

    Raises:
        DataError: two subfolders name one split.
    """
    names = sorted(entry.name for entry in os.scandir(path) if entry.is_dir() and not is_hidden(entry.name))
    folders: dict[str, str] = {}
    words = WORDS if {"train", "training"} & {*map(str.lower, names)} else {word: word for word in SPLITS}
    for name in names:
        split = words.get(name.lower())
        if split in folders:
            raise DataError(f"{path!r} has the folders {folders[split]!r} and {name!r}, both of {split!r}: join them.")
        if split is not None:
            folders[split] = name
    others = [name for name in names if name not in folders.values() and list_images(path, name)] if folders else []
    if others:
        listed = ", ".join(map(repr, others[:3])) + (", ..." if len(others) > 3 else "")
        used = ", ".join(map(repr, folders.values()))
        warnings.warn(f"{path!r} has folders of splits, {used}; the images in {listed} are left out.", stacklevel=3)
    return {split: folders[split] for split in SPLITS if split in folders}
