"""Images that differ from each other, on disk and as records."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from velm.data.base import Record


def draw(number: int, size: int = 96) -> Image.Image:
    """A smooth image that no other number gives."""
    coarse = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)


@pytest.fixture
def scene() -> Callable[..., Image.Image]:
    """`scene(number)`: an image."""
    return draw


@pytest.fixture
def records(tmp_path: Path) -> Callable[..., list[Record]]:
    """`records(split, first, count)`: records of JPEG files."""

    def make(split: str, first: int, count: int) -> list[Record]:
        made = []
        for number in range(first, first + count):
            path = tmp_path / f"{split}_{number}.jpg"
            draw(number).save(path, quality=90)
            made.append(Record(image_id=path.stem, image=str(path), texts=(f"image {number}",)))
        return made

    return make
