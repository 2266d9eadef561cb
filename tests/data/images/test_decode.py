from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from velm.data.base import EncodedImage
from velm.data.images import pixels as decoding
from velm.data.images.decode import read_image
from velm.data.images.pixels import read_pixels
from velm.errors import DataError


def noise(width: int, height: int) -> Image.Image:
    """Smooth noise, so that every JPEG option shows in the pixels."""
    values = np.random.default_rng(0).integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), np.uint8)
    return Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


IMAGES = {
    **{f"baseline {kind}": encoded(noise(50, 37), subsampling=kind) for kind in range(3)},
    **{f"progressive {kind}": encoded(noise(50, 37), subsampling=kind, progressive=True) for kind in range(3)},
    "4:1:1": encoded(noise(50, 37), subsampling="4:1:1"),
    "one pixel": encoded(noise(1, 1)),
    "RGB inside": encoded(noise(50, 37), keep_rgb=True),
    "restarts": encoded(noise(50, 37), restart_marker_blocks=2),
    "grey": encoded(noise(50, 37).convert("L")),
    "CMYK": encoded(noise(50, 37).convert("CMYK")),
    **{f"orientation {turn}": encoded(noise(50, 37), exif=turned(turn)) for turn in range(10)},
    "turned by XMP": encoded(noise(50, 37), xmp=b'<x xmlns:tiff="t" tiff:Orientation="6"/>'),
    "bytes behind its end": encoded(noise(50, 37)) + b"left over",
    "PNG": encoded(noise(50, 37), "PNG"),
    "16 bits": encoded(Image.fromarray(np.array([[0, 256, 65535]], np.uint16)), "PNG"),
    "transparent": encoded(noise(50, 37).convert("RGBA"), "PNG"),
    "several in one": encoded(noise(50, 37), "MPO", save_all=True, append_images=[noise(20, 10)]),
}


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("minimum", [18, 30])
def test_pixels_are_those_of_the_image(tmp_path: Path, name: str, minimum: int) -> None:
    (tmp_path / "a").write_bytes(IMAGES[name])
    expected = torch.from_numpy(np.array(read_image(tmp_path / "a", minimum)))
    for image in (tmp_path / "a", EncodedImage("inside/a", lambda: IMAGES[name])):
        pixels = read_pixels(image, minimum)
        assert torch.equal(pixels, expected.permute(2, 0, 1))
        assert pixels.permute(1, 2, 0).is_contiguous()


def test_arrays_and_images_have_pixels_too() -> None:
    image = noise(9, 5)
    assert torch.equal(read_pixels(image, 5), read_pixels(np.asarray(image), 5))


def test_only_plain_jpeg_is_decoded_without_pil(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("decoded by PIL")

    monkeypatch.setattr(decoding, "upright", refuse)
    plain = EncodedImage("a.jpg", lambda: encoded(noise(50, 37)))
    assert read_pixels(plain, minimum=30).shape == (3, 37, 50)
    for image, minimum in ((plain, 18), (EncodedImage("b.jpg", lambda: IMAGES["orientation 6"]), 30)):
        with pytest.raises(DataError, match="decoded by PIL"):
            read_pixels(image, minimum)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("part", [0.3, 0.6, 0.9, 0.999])
def test_half_a_file_is_no_image(progressive: bool, part: float) -> None:
    whole = encoded(noise(300, 200), progressive=progressive)
    half = EncodedImage("half.jpg", lambda: whole[: int(len(whole) * part)])
    for read in (read_image, read_pixels):
        with pytest.raises(DataError, match=r"Cannot read image 'half.jpg': OSError: .*truncated"):
            read(half, 200)


@pytest.mark.parametrize(
    "content", [b"", b"no image", b"\xff\xd8\xff", b"\xff\xd8\xff\xe1", b"\xff\xd8\xff\xc0\0\x11\x08"]
)
def test_what_is_no_image_is_refused_in_the_same_words_each_time(content: bytes) -> None:
    for read in (read_image, read_pixels):
        with pytest.raises(DataError, match=r"Cannot read image 'a.jpg': \w+: [^<>]+$"):
            read(EncodedImage("a.jpg", lambda: content), 10)


def test_without_torchvisions_codec_pil_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any) -> None:
        raise RuntimeError("decode_jpeg: torchvision not compiled with libjpeg support")

    monkeypatch.setattr(torch.ops.image, "decode_jpeg", missing)
    decoding._torchvision_decodes.cache_clear()
    image = EncodedImage("a.jpg", lambda: encoded(noise(50, 37)))
    expected = torch.from_numpy(np.array(read_image(image))).permute(2, 0, 1)
    with pytest.warns(UserWarning, match=r"torchvision cannot decode JPEG \(RuntimeError: .*libjpeg support\)") as said:
        assert all(torch.equal(read_pixels(image, 37), expected) for _ in range(3))
    assert len(said) == 1
    decoding._torchvision_decodes.cache_clear()


def test_a_image_is_fetched_once() -> None:
    fetched = []

    def load() -> bytes:
        fetched.append(1)
        return IMAGES["orientation 3"]

    read_pixels(EncodedImage("far/a.jpg", load), 37)
    assert len(fetched) == 1
