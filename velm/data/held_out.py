"""Splits of data that has none: a fraction of the images is held out, by a hash of their names."""

from __future__ import annotations

import hashlib
import os

__all__ = ["SPLITS", "check_fractions", "hashed_split", "path_key", "position"]

SPLITS = ("train", "val", "test")


def check_fractions(val_fraction: float, test_fraction: float) -> None:
    """Raise ValueError unless both fractions are at least 0 and their sum is below 1."""
    if val_fraction < 0 or test_fraction < 0 or val_fraction + test_fraction >= 1:
        raise ValueError(
            f"val_fraction {val_fraction} and test_fraction {test_fraction} must not be negative, and "
            f"their sum must be below 1 to leave images for training."
        )


def hashed_split(path: str, val_fraction: float, test_fraction: float) -> str:
    """The split of an image: a function of its path without extension and the fractions."""
    place = position(path_key(path))
    if place < val_fraction:
        return "val"
    return "test" if place < val_fraction + test_fraction else "train"


def path_key(path: str) -> str:
    """What stands for the path of an image: without extension, with '/' on every system."""
    return os.path.splitext(path)[0].replace(os.sep, "/")


def position(name: str, seed: int = 0) -> float:
    """A number in [0, 1), uniform over names: a function of the SHA-256 of a name and, unless it is 0, the seed."""
    salted = f"{seed}/{name}" if seed else name
    return int.from_bytes(hashlib.sha256(salted.encode()).digest()[:8], "big") / 2**64
