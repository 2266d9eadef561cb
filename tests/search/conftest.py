"""Images of noise in a folder, and an index of them by the tiny model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from photos import write_image

from velm.search import Index, Updated, update
from velm.search.sources import folder_source


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

    run.pipeline = pipeline  # type: ignore[attr-defined]
    return run


@pytest.fixture
def index(follow: Callable[..., Updated], tmp_path: Path) -> Index:
    follow()
    return Index.open(tmp_path / "index")
