"""Images without torch are those of torch, bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from velm.data.images.transforms import EvalTransform
from velm.errors import DataError
from velm.onnx.images import ArrayTransform
from velm.onnx.resize import resize


@pytest.mark.parametrize("mode", ["bilinear", "bicubic", "lanczos"])
def test_resize_is_that_of_torch(mode: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(25):
        height, width, rows, columns = rng.integers(1, 200, 4)
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        tensor = torch.from_numpy(image).permute(2, 0, 1)[None]
        expected = functional.interpolate(tensor, (int(rows), int(columns)), mode=mode, antialias=True)
        found = resize(image, (int(rows), int(columns)), mode)
        np.testing.assert_array_equal(found, expected[0].permute(1, 2, 0).numpy())


@pytest.mark.parametrize("kind", ["crop", "squash", "shortest", "longest", "enlarge"])
def test_squares_of_files_are_those_of_torch(kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    paths = []
    shapes = {"wide.jpg": (60, 90, 3), "high.jpg": (300, 170, 3), "large.jpg": (400, 400, 3), "a.png": (50, 33, 4)}
    for name, shape in shapes.items():
        paths.append(tmp_path / name)
        coarse = Image.fromarray(rng.integers(0, 256, (9, 9, shape[2]), dtype=np.uint8))
        coarse.resize(shape[1::-1], Image.Resampling.BICUBIC).save(paths[-1])
    options = {"image_size": 48, "resize": kind, "interpolation": "bicubic"}
    for path in paths:
        np.testing.assert_array_equal(ArrayTransform(**options)(path), EvalTransform(**options)(path).numpy())


def test_a_wrong_type_of_image_is_refused() -> None:
    with pytest.raises(DataError, match="not list"):
        ArrayTransform(image_size=8)([1, 2])
    with pytest.raises(DataError, match=r"uint8 of shape .* got float64 \(4, 4, 3\)"):
        ArrayTransform(image_size=8)(np.zeros((4, 4, 3)))
