"""Images of colours in files that were written long ago."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

PAST = 1_700_000_000  # seconds; a time that the file system's clock has passed


def write_image(path: Path, seed: int, width: int = 24, height: int = 20, **options: Any) -> Path:
    """An image that differs from those of other seeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    corners = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    Image.fromarray(corners).resize((width, height), Image.Resampling.BICUBIC).save(path, **options)
    os.utime(path, (PAST, PAST + seed))
    return path
