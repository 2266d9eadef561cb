"""The same image twice, by bytes or nearly; different images are not reported."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from velm.data.base import Record
from velm.data.synthetic.shapes import Shapes
from velm.doctor.duplicates import check_duplicates, near_pairs
from velm.doctor.images import ScannedImage, scan_images


def examined(**splits: list[Record]) -> dict[str, object]:
    return {finding.check: finding for finding in check_duplicates(scan_images(splits, limit=10_000))}


def test_clean_splits_have_none(records) -> None:
    found = examined(train=records("train", 0, 40), val=records("val", 40, 20))
    assert {f.severity for f in found.values()} == {"ok"}
    assert found["duplicates_across_splits"].message == "No image is in two splits, among 60 decoded."


def test_a_copy_in_another_split_is_a_warning(records, tmp_path: Path) -> None:
    train, val = records("train", 0, 5), records("val", 5, 2)
    copy = tmp_path / "copy.jpg"
    shutil.copy(train[3].image, copy)
    found = examined(train=train, val=[*val, Record("copy", str(copy), ("a",))])
    finding = found["duplicates_across_splits"]
    assert finding.severity == "warning"
    assert f"1 byte for byte (=), 0 nearly the same (~): train {train[3].image} = val {copy}." in finding.message
    assert "Remove them from the training split" in finding.advice
    assert found["duplicates_within_a_split"].severity == "ok"


@pytest.mark.parametrize(
    "change",
    [
        lambda image: image.resize((64, 64)),
        lambda image: image.resize((300, 300)),
        lambda image: ImageEnhance.Brightness(image).enhance(0.9),
        lambda image: image,
    ],
)
def test_an_image_saved_again_is_recognised(change, records, tmp_path: Path) -> None:
    train, val = records("train", 0, 5), records("val", 5, 2)
    again = tmp_path / "again.jpg"
    change(Image.open(train[1].image)).save(again, quality=60)
    finding = examined(train=train, val=[*val, Record("again", str(again), ("a",))])["duplicates_across_splits"]
    assert finding.severity == "warning"
    assert finding.value == {"exact": 0, "near": 1, "pairs": [f"train {train[1].image} ~ val {again}"]}


def test_twice_in_one_split_is_information(records) -> None:
    train = records("train", 0, 4)
    found = examined(train=[*train, Record("again", train[0].image, ("a",))])
    assert found["duplicates_within_a_split"].severity == "info"
    assert "twice in one split: 1 byte for byte" in found["duplicates_within_a_split"].message
    assert found["duplicates_across_splits"].severity == "ok"


def test_drawings_on_plain_ground_are_distinguished() -> None:
    data = Shapes(train_size=400, val_size=100, test_size=100)
    found = examined(**{name: data.split(name) for name in ("train", "val", "test")})
    assert found["duplicates_across_splits"].severity == "ok"


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """All pairs at once and row by row are the same pairs; a pair is found whichever comes first."""
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, 40, dtype=np.uint64).tolist()
    hashes[30] = hashes[2] ^ 0b1011
    hashes[7] = hashes[6] ^ 0b11111  # five bits: too far
    flat = np.zeros((16, 16, 3), dtype=np.uint8)
    seen = [ScannedImage("train", str(i), digest=bytes([i]), hash=h, thumbnail=flat) for i, h in enumerate(hashes)]
    for rows in (1, 7, 256):
        monkeypatch.setattr("velm.doctor.duplicates.ROWS", rows)
        assert [(a.name, b.name) for a, b in near_pairs(seen)] == [("2", "30")]
    assert [(a.name, b.name) for a, b in near_pairs(seen[::-1])] == [("30", "2")]
