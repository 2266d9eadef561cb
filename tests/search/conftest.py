"""Images of noise in a folder, and an index of them by the tiny model."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from velm.search import Index, Updated, update
from velm.search.sources import folder_source

PAST = 1_700_000_000  # seconds; a time that the file system's clock has passed


def write_image(path: Path, seed: int, width: int = 24, height: int = 20, **options: Any) -> Path:
    """An image that differs from those of other seeds, written long ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    corners = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    Image.fromarray(corners).resize((width, height), Image.Resampling.BICUBIC).save(path, **options)
    os.utime(path, (PAST, PAST + seed))
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of 8 images, two of them in a subfolder."""
    for seed in range(8):
        write_image(tmp_path / "photos" / ("sub" if seed > 5 else "") / f"{seed}.png", seed)
    return tmp_path / "photos"


@pytest.fixture
def follow(pipeline: Any, photos: Path, tmp_path: Path) -> Callable[..., Updated]:
    """`follow(**options)` makes the index in tmp_path / 'index' follow the folder."""

    def run(exclude: tuple[str, ...] = (), **options: Any) -> Updated:
        return update(pipeline, folder_source(photos, exclude), tmp_path / "index", checkpoint="tiny.ckpt", **options)

    return run


@pytest.fixture
def index(follow: Callable[..., Updated], tmp_path: Path) -> Index:
    follow()
    return Index.open(tmp_path / "index")
