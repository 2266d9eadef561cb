"""An image is known by what would change with it, and images by their order too."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny import image_bytes, write_tar

from velm.data.base import EncodedImage
from velm.data.feature_cache.key import fingerprint_images
from velm.data.shards.tar import FileSlice


def of(*images: Any) -> str:
    return fingerprint_images(images)


def test_files_by_path_size_and_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = tmp_path / "1.jpg", tmp_path / "2.jpg"
    one.write_bytes(b"abc")
    two.write_bytes(b"abc")
    os.utime(one, ns=(5, 5))
    os.utime(two, ns=(5, 5))
    known = of(str(one))
    assert known == of(one)
    assert known != of(two)
    assert of(one, two) != of(two, one)
    monkeypatch.chdir(tmp_path)
    assert of("1.jpg") == known
    os.utime(one, ns=(6, 6))
    assert of(one) != known
    os.utime(one, ns=(5, 5))
    assert of(one) == known
    one.write_bytes(b"abcd")
    os.utime(one, ns=(5, 5))
    assert of(one) != known
    one.unlink()
    assert of(one) != known


def test_pixels_by_themselves() -> None:
    black, white = np.zeros((2, 3, 3), np.uint8), np.full((2, 3, 3), 255, np.uint8)
    assert of(black) == of(black.copy())
    assert len({of(black), of(white), of(black.reshape(3, 2, 3)), of(None), of()}) == 5
    assert of(Image.fromarray(black)) != of(Image.fromarray(white))
    assert of(Image.new("P", (2, 2))) != of(Image.new("L", (2, 2)))


def test_images_of_a_shard_by_their_place_and_the_shard(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "a.tar", {"1.jpg": image_bytes(1), "2.jpg": image_bytes(2)})
    one, two = (EncodedImage("x", FileSlice(shard, offset, 9)) for offset in (512, 1024))
    known = of(one)
    assert known == of(one) != of(two)
    assert known != of(EncodedImage("y", one.load))
    os.utime(shard, ns=(1, 1))
    assert of(one) != known


def test_bytes_of_whatever_a_loader_does_not_tell() -> None:
    def loaded(content: bytes) -> EncodedImage:
        return EncodedImage("x", partial(bytes, content))

    assert of(loaded(b"a")) == of(loaded(b"a")) != of(loaded(b"b"))
