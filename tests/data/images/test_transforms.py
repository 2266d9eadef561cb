from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from velm.data.base import EncodedImage
from velm.data.images.transforms import EvalTransform, TrainTransform, read_image, transform_from_config
from velm.errors import DataError


def gradient(width: int, height: int) -> Image.Image:
    """Red grows to the right, green downwards."""
    red = np.linspace(0, 255, width)[None].repeat(height, 0)
    green = np.linspace(0, 255, height)[:, None].repeat(width, 1)
    return Image.fromarray(np.stack([red, green, np.full((height, width), 128.0)], -1).astype(np.uint8))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_a_path_a_image_and_an_array_are_the_same(tmp_path: Path) -> None:
    image = gradient(20, 10)
    image.save(tmp_path / "a.png")
    inside = EncodedImage("archive/a.png", (tmp_path / "a.png").read_bytes)
    for given in (image, np.asarray(image), tmp_path / "a.png", str(tmp_path / "a.png"), inside):
        assert np.array_equal(np.asarray(read_image(given)), np.asarray(image))


def test_a_image_inside_something_larger_is_named_too(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Cannot read image 'archive/a\.png': UnidentifiedImageError"):
        read_image(EncodedImage("archive/a.png", lambda: b"no image"))
    with pytest.raises(DataError, match=r"There is no image 'archive/b\.png'"):
        read_image(EncodedImage("archive/b.png", (tmp_path / "b.png").read_bytes))


def test_exif_rotation_is_carried_out(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees to see it upright
    gradient(40, 20).save(tmp_path / "a.jpg", exif=exif, quality=100)
    upright = read_image(tmp_path / "a.jpg")
    assert upright.size == (20, 40)
    pixels = np.asarray(upright).astype(int)
    assert pixels[35, 10, 0] > pixels[5, 10, 0] + 100  # red grows downwards now


def test_transparent_is_white_and_opaque_stays() -> None:
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0, 0] = (255, 0, 0, 255)
    pixels = np.asarray(read_image(rgba))
    assert pixels[0, 0].tolist() == [255, 0, 0]
    assert pixels[1, 1].tolist() == [255, 255, 255]


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK", "YCbCr", "LA", "RGBA", "HSV"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    converted = read_image(Image.new("RGB", (4, 4), "white").convert(mode))
    assert converted.mode == "RGB"
    assert np.asarray(converted).min() >= 250


def test_a_palette_with_a_transparent_colour(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1), 0)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "a.gif", transparency=0)
    assert np.asarray(read_image(tmp_path / "a.gif")).tolist() == [[[255, 255, 255], [255, 0, 0]]]


def test_a_big_jpeg_is_decoded_small_but_never_below_the_minimum(tmp_path: Path) -> None:
    gradient(1000, 800).save(tmp_path / "a.jpg")
    assert read_image(tmp_path / "a.jpg").size == (1000, 800)
    assert read_image(tmp_path / "a.jpg", minimum=100).size == (125, 100)
    assert read_image(tmp_path / "a.jpg", minimum=101).size == (250, 200)
    assert read_image(tmp_path / "a.jpg", minimum=700).size == (1000, 800)


def test_decoding_small_changes_little(tmp_path: Path) -> None:
    gradient(1000, 800).save(tmp_path / "a.jpg", quality=95)
    small = EvalTransform(image_size=64)(tmp_path / "a.jpg")
    whole = EvalTransform(image_size=64)(read_image(tmp_path / "a.jpg"))
    assert (small.int() - whole.int()).abs().max() <= 4


def test_an_unreadable_image_is_named_with_its_cause(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no image")
    buffer = io.BytesIO()
    gradient(300, 300).save(buffer, "JPEG")
    (tmp_path / "half.jpg").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    with pytest.raises(DataError, match=r"Cannot read image .*text.jpg.*: UnidentifiedImageError"):
        read_image(tmp_path / "text.jpg")
    with pytest.raises(DataError, match=r"Cannot read image .*half.jpg.*: OSError.*truncated"):
        read_image(tmp_path / "half.jpg")
    with pytest.raises(DataError, match=r"There is no image .*none.jpg"):
        read_image(tmp_path / "none.jpg")


@pytest.mark.parametrize(
    "array", [np.zeros((4, 4, 3), np.float32), np.zeros((3, 4, 4, 3), np.uint8), np.zeros((3, 4, 5), np.uint8)]
)
def test_wrong_arrays_are_refused(array: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"must be uint8 of shape .*; got"):
        read_image(array)


def test_other_things_are_refused() -> None:
    with pytest.raises(DataError, match="not int"):
        read_image(3)


@pytest.mark.parametrize(
    "transform", [EvalTransform(image_size=16), TrainTransform(image_size=16, flip=True, color_jitter=0.3)]
)
@pytest.mark.parametrize("size", [(16, 16), (40, 20), (7, 9), (1, 1), (1, 50)])
def test_any_image_becomes_a_square_of_bytes(transform, size: tuple[int, int]) -> None:
    pixels = transform(gradient(*size), rng())
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (3, 16, 16)
    assert pixels.is_contiguous()


def test_crop_takes_the_middle_and_squash_takes_all() -> None:
    image = gradient(40, 20)
    crop = EvalTransform(image_size=20)(image)
    assert torch.equal(crop, torch.from_numpy(np.asarray(image).copy())[:, 10:30].permute(2, 0, 1))
    squash = EvalTransform(image_size=20, resize="squash")(image)
    assert squash[0, 0, 0] < 10
    assert squash[0, 0, -1] > 245


def test_training_without_options_is_validation() -> None:
    image = gradient(50, 31)
    for resize in ("crop", "squash"):
        train = TrainTransform(image_size=16, resize=resize, crop_scale=None)
        assert torch.equal(train(image, rng()), EvalTransform(image_size=16, resize=resize)(image))


def test_training_is_a_function_of_the_generator() -> None:
    transform = TrainTransform(image_size=16, flip=True, color_jitter=0.4)
    image = gradient(50, 31)
    assert torch.equal(transform(image, rng(1)), transform(image, rng(1)))
    assert not torch.equal(transform(image, rng(1)), transform(image, rng(2)))


@pytest.mark.parametrize("resize", ["crop", "squash"])
def test_random_boxes_have_the_area_asked_for_and_stay_inside(resize: str) -> None:
    from velm.data.images.transforms import _random_box

    generator = rng()
    for _ in range(200):
        area, ratio = generator.uniform(0.3, 0.5), generator.uniform(0.75, 4 / 3)
        left, top, width, height = _random_box(100, 80, resize, area, ratio, generator)
        assert 0 <= left <= 100 - width
        assert 0 <= top <= 80 - height
        assert width * height / 8000 == pytest.approx(area, abs=0.02)


def test_flip_mirrors_half_of_the_images() -> None:
    image = gradient(16, 16)
    plain = EvalTransform(image_size=16)(image)
    transform = TrainTransform(image_size=16, crop_scale=None, flip=True)
    outcomes = [transform(image, rng(seed)) for seed in range(60)]
    mirrored = sum(torch.equal(pixels, plain.flip(-1)) for pixels in outcomes)
    assert mirrored + sum(torch.equal(pixels, plain) for pixels in outcomes) == 60
    assert 15 < mirrored < 45


@pytest.mark.parametrize("size", [(20, 10), (7, 31), (8, 8)])
def test_an_image_is_enlarged_as_idefics_does(size) -> None:
    from transformers import Idefics3ImageProcessor

    image = Image.fromarray(rng().integers(0, 256, (*size, 3), dtype=np.uint8))
    processor = Idefics3ImageProcessor(
        size={"longest_edge": 32}, max_image_size={"longest_edge": 8}, do_image_splitting=False, do_normalize=False,
        do_rescale=False,
    )  # fmt: skip
    expected = processor(image, return_tensors="pt")["pixel_values"][0, 0]
    ours = EvalTransform(image_size=8, resize="enlarge", interpolation="lanczos", decode="full")(image)
    assert torch.equal(ours, expected.to(torch.uint8))


def test_an_old_torch_knows_no_lanczos(monkeypatch) -> None:
    monkeypatch.setattr("velm.data.images.transforms.has_lanczos", lambda: False)
    with pytest.raises(ValueError, match=r"interpolation lanczos needs a newer torch than .*; take bicubic"):
        EvalTransform(image_size=8, interpolation="lanczos")


def test_config_makes_the_transform_again() -> None:
    transform = EvalTransform(image_size=24, resize="squash")
    assert transform.config() == {"image_size": 24, "resize": "squash"}
    assert transform_from_config(transform.config()).config() == transform.config()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 0}, "image_size must be at least 1 pixel, got 0"),
        (
            {"image_size": 8, "resize": "pad"},
            "resize must be one of crop, squash, shortest, longest, enlarge; got 'pad'",
        ),
        ({"image_size": 8, "crop_scale": (0.9, 0.2)}, "0 < smallest <= largest <= 1"),
        ({"image_size": 8, "color_jitter": 2.0}, r"color_jitter must be in \[0, 1\], got 2.0"),
    ],
)
def test_impossible_options_are_refused(options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainTransform(**options)
