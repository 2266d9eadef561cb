"""Each image is opened once: what is missing or broken is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from velm.data.base import EncodedImage, Record
from velm.doctor.images import check_images, check_range, difference_hash, scan_images


def test_clean_images_pass(records) -> None:
    found = scan_images({"train": records("train", 0, 6), "val": records("val", 6, 3)}, limit=100)
    (finding,) = check_images(found)
    assert finding.severity == "ok"
    assert finding.message == "9 images decoded, none missing."
    assert len({p.digest for p in found}) == len({p.hash for p in found}) == 9


def test_a_missing_image_is_named(records) -> None:
    train = records("train", 0, 4)
    Path(train[2].image).unlink()
    (finding,) = check_images(scan_images({"train": train}, limit=100))
    assert finding.severity == "error"
    assert finding.message == f"1 of 4 (25.0%) images are missing: {train[2].image}."
    assert "data.dataset.root" in finding.advice


def test_unreadable_images_are_named_with_their_cause(records) -> None:
    train = records("train", 0, 4)
    content = Path(train[0].image).read_bytes()
    Path(train[0].image).write_bytes(content[: len(content) // 2])  # cut off
    Path(train[1].image).write_bytes(b"no image")
    (finding,) = check_images(scan_images({"train": train}, limit=100))
    assert finding.severity == "error"
    assert finding.message.startswith("2 of 4 (50.0%) decoded images cannot be read. train: Cannot read image")
    assert "train_0.jpg" in finding.message
    assert "truncated" in finding.message
    assert "UnidentifiedImageError" in finding.message


def test_a_limit_is_stated_and_missing_files_are_still_found(records) -> None:
    train = records("train", 0, 10)
    (finding,) = check_images(scan_images({"train": train}, limit=3))
    assert finding.message == "3 images decoded, none missing; the other 7 were only checked to exist (--pictures)."
    for record in train:
        Path(record.image).unlink()
    (finding,) = check_images(scan_images({"train": train}, limit=3))
    assert finding.value["missing"] == 10


def test_every_kind_of_image_is_taken(records) -> None:
    path = records("train", 0, 1)[0].image
    content = Path(path).read_bytes()
    inside = EncodedImage("shard.tar/a.jpg", lambda: content)
    array = np.zeros((8, 8, 3), dtype=np.uint8)
    found = scan_images(
        {"train": [Record("a", inside, ("a",)), Record("b", array, ("b",)), Record("c", None, ("c",))]}, limit=9
    )
    assert [p.name for p in found] == ["shard.tar/a.jpg", "b"]
    assert all(p.error is None for p in found)
    assert found[0].digest == scan_images({"x": [Record("a", path, ("a",))]}, limit=1)[0].digest
    assert check_images([])[0].message == "The data has no images."


def test_a_record_that_raises_is_a_broken_image() -> None:
    class Broken(list):
        def __getitem__(self, index):  # type: ignore[no-untyped-def]
            raise KeyError("gone")

    (finding,) = check_images(scan_images({"train": Broken([1])}, limit=5))
    assert "KeyError: 'gone'" in finding.message


def test_the_hash_forgets_size_and_not_content(scene) -> None:
    a, b = scene(1), scene(2)
    assert (difference_hash(a) ^ difference_hash(a.resize((200, 200)))).bit_count() <= 4
    assert (difference_hash(a) ^ difference_hash(b)).bit_count() > 12


def test_ranges_of_deep_grey_and_dark_images_are_shown(records) -> None:
    train = records("train", 0, 4)
    (finding,) = check_range(scan_images({"train": train}, limit=100))
    assert (finding.severity, finding.message) == ("ok", "No image is nearly black.")
    ramp = np.tile(np.linspace(0, 1, 40), (32, 1))
    for record, image in zip(train, ((ramp * 4095).astype(np.uint16), ramp.astype(np.float32)), strict=False):
        Image.fromarray(image).save(record.image, "TIFF")
    Image.fromarray((ramp * 15).astype(np.uint8)).save(train[2].image, "PNG")
    deep, dark = check_range(scan_images({"train": train}, limit=100))
    assert deep.severity == "info"
    assert deep.message == (
        f"2 of 4 (50.0%) decoded images are grey of more than 8 bits, scaled by the range that each holds: "
        f"{train[0].image} holds 0 to 4095, read as 12 bits, {train[1].image} holds 0 to 1, read as [0, 1]."
    )
    assert deep.value["ranges"] == {train[0].image: [0, 4095], train[1].image: [0, 1]}
    assert dark.severity == "warning"
    assert f"1 of 4 (25.0%) images are nearly black (no value of 255 above 15): {train[2].image}." in dark.message
    assert check_range([])[0].severity == "skipped"
