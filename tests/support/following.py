"""A folder that changes, and a comparison of the indexes of it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
from photos import write_image

from velm.search import store
from velm.search.writer import Writer


def content(folder: Path) -> dict[str, tuple]:
    """Every valid row by its path: the row without its time, and its vector."""
    writer = Writer(folder)
    rows = [(place, row) for place, row in writer.places() if row.status != store.DELETED]
    found = {row.image_path: (row._replace(mtime_ns=0), writer.vector(place)) for place, row in rows}
    assert len(found) == len(rows)
    return found


def assert_same_index(first: Path, second: Path) -> None:
    one, other = content(first), content(second)
    assert sorted(one) == sorted(other)
    for path, (row, vector) in one.items():
        assert row == other[path][0]
        np.testing.assert_allclose(vector, other[path][1], atol=1e-3)  # the batch differs: an ulp of half precision


def disturb(photos: Path, random: np.random.Generator, number: int) -> None:
    """Rename, delete, break, touch, exchange or add some files."""
    files = sorted(photos.rglob("*.png"))
    chosen = [files[i] for i in random.permutation(len(files))[:3]]
    write_image(photos / f"new{number}.png", seed=1000 + number)
    if len(files) > 4:
        os.rename(chosen[0], photos / f"renamed{number}.png")
        match number % 4:
            case 0:
                chosen[1].unlink()
            case 1:
                chosen[1].write_bytes(b"broken" * number)
            case 2:
                shutil.copy2(chosen[2], chosen[1])
            case 3:
                write_image(chosen[1], seed=2000 + number)
