from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from velm.data.base import EncodedImage
from velm.data.images.decode import read_image, read_range
from velm.data.images.grey import to_eight_bits
from velm.data.images.pixels import read_pixels

NAN, INF = float("nan"), float("inf")


def saved(values: np.ndarray, kind: str) -> EncodedImage:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, kind)
    return EncodedImage(f"a.{kind}", buffer.getvalue)


@pytest.mark.parametrize(
    ("values", "expected", "kinds"),
    [
        (np.array([0, 256, 32768, 65535], np.uint16), [0, 1, 128, 255], ("PNG", "TIFF")),  # the high byte
        (np.array([0, 16, 2048, 4095], np.uint16), [0, 1, 128, 255], ("PNG", "TIFF")),  # 12 bits in 16
        (np.array([0, 4, 512, 1023], np.uint16), [0, 1, 128, 255], ("PNG", "TIFF")),
        (np.array([0, 64, 8192, 16383], np.uint16), [0, 1, 128, 255], ("PNG", "TIFF")),
        (np.array([0, 1, 128, 255], np.uint16), [0, 1, 128, 255], ("PNG", "TIFF")),
        (np.array([0, 100, 1500, 3000], np.uint16), [0, 6, 93, 187], ("PNG", "TIFF")),  # of a detector of 12 bits
        (np.array([0, 0, 0, 0], np.uint16), [0, 0, 0, 0], ("PNG", "TIFF")),
        (np.array([-1024, 0, 1024, 3071], np.int32), [0, 64, 128, 255], ("TIFF",)),  # Hounsfield units
        (np.array([0, 65536, 131072], np.int32), [0, 128, 255], ("TIFF",)),
        (np.array([0, 0.25, 0.5, 1], np.float32), [0, 64, 128, 255], ("TIFF",)),
        (np.array([0, 0.25, 0.5, 0.5], np.float32), [0, 64, 128, 128], ("TIFF",)),
        (np.array([-1, 0, 1], np.float32), [0, 128, 255], ("TIFF",)),
        (np.array([0, 50, 100], np.float32), [0, 128, 255], ("TIFF",)),
        (np.array([0, NAN, 0.5, INF, -INF], np.float32), [0, 0, 128, 255, 0], ("TIFF",)),
        (np.array([0, 2048, 4096], np.float32) / 65536, [0, 128, 255], ("TIFF",)),  # 12 bits divided by 16
        (np.array([7, 7], np.float32), [0, 0], ("TIFF",)),
        (np.array([NAN, NAN], np.float32), [0, 0], ("TIFF",)),
    ],
)
def test_grey_is_scaled_by_what_it_holds(values: np.ndarray, expected: list[int], kinds: tuple[str, ...]) -> None:
    assert np.asarray(to_eight_bits(Image.fromarray(values[None])))[0].tolist() == expected
    for kind in kinds:
        image = saved(values[None], kind)
        pixels = read_pixels(image, 1)
        assert pixels.shape == (3, 1, len(values))
        assert pixels[0, 0].tolist() == pixels[1, 0].tolist() == pixels[2, 0].tolist() == expected


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.array([[5, 4095]], np.uint16), "5 to 4095, read as 12 bits"),
        (np.array([[0, 0.5]], np.float32), "0 to 0.5, read as [0, 1]"),
        (np.array([[-2.5, NAN, 3]], np.float32), "-2.5 to 3, read as its own range"),
        (np.array([[0, 70000]], np.int32), "0 to 70000, read as its own range"),
    ],
)
def test_the_range_is_stated(values: np.ndarray, words: str) -> None:
    assert str(read_range(saved(values, "TIFF"))) == str(read_range(Image.fromarray(values))) == words


def test_eight_bits_have_no_range(tmp_path: Path) -> None:
    for mode in ("L", "RGB", "P", "1", "RGBA"):
        Image.new(mode, (2, 2)).save(tmp_path / "a.png")
        assert read_range(tmp_path / "a.png") is None
    assert read_range(np.zeros((2, 2), np.uint8)) is None


def test_big_endian_and_rotated(tmp_path: Path) -> None:
    values = np.array([[0, 2048, 4095]], np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(values).save(tmp_path / "a.tif", exif=exif)
    assert np.asarray(read_image(tmp_path / "a.tif"))[:, 0, 0].tolist() == [0, 128, 255]
    big = Image.frombytes("I;16B", (3, 1), values.astype(">u2").tobytes())
    assert np.asarray(read_image(big))[0, :, 0].tolist() == [0, 128, 255]
