from __future__ import annotations

import io
import struct
import sys
import types
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile, PngImagePlugin

from velm.data.base import EncodedImage
from velm.data.images.decode import read_image
from velm.data.images.pixels import read_pixels
from velm.data.images.unidentified import register_heic, without_text
from velm.errors import DataError

HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (9, 5), "red").save(buffer, "PNG")
    return buffer.getvalue()


LARGE = zlib.compress(b"x" * 3_000_000)
TEXTS = {
    "compressed": chunk(b"zTXt", b"prompt\0\0" + LARGE),
    "international": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + LARGE),
    "profile": chunk(b"iCCP", b"icc\0\0" + LARGE),
    "many": 70 * chunk(b"zTXt", b"workflow\0\0" + zlib.compress(b"y" * 1_000_000)),
}


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("place", ["before the pixels", "after the pixels"])
def test_png_with_much_text_is_read(text: str, place: str) -> None:
    whole, settings = png(), (PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY)
    at = 33 if place == "before the pixels" else whole.index(b"IEND") - 4
    content = whole[:at] + TEXTS[text] + whole[at:]
    assert without_text(content) == whole
    image = EncodedImage("a.png", lambda: content)
    assert np.array_equal(np.asarray(read_image(image)), np.asarray(Image.new("RGB", (9, 5), "red")))
    assert read_pixels(image, 5).shape == (3, 5, 9)
    assert settings == (PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY)
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


def error(content: bytes) -> str:
    with pytest.raises(DataError) as raised:
        read_image(EncodedImage("a.jpg", lambda: content))
    return str(raised.value)


@pytest.fixture
def forget_heic():
    register_heic.cache_clear()
    yield
    register_heic.cache_clear()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (HEIC, "it is HEIC, which Pillow reads with pillow-heif: pip install 'velm[heic]'"),
        (HEIC.replace(b"heic", b"mif1", 1), "it is HEIC"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "it is SVG, a drawing; render it to pixels first"),
        (b"<?xml version='1.0'?>\n<!-- by hand -->\n<svg/>", "it is SVG"),
        (b"  <!DOCTYPE html><html>404</html>", "it is a web page, so its download failed"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "git lfs pull"),
        (bytes(128) + b"DICM" + bytes(10), "it is DICOM"),
        (b"%PDF-1.7", "it is PDF"),
        (b"\0\0\0\x18ftypisom" + bytes(64), "it is a video"),
        (b"\xff\x0a\xfa\x7f", "it is JPEG XL"),
        (b"", "it is empty"),
    ],
)
def test_what_is_no_image_is_named(
    content: bytes, words: str, monkeypatch: pytest.MonkeyPatch, forget_heic: None
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    message = error(content)
    assert message.startswith("Cannot read image 'a.jpg': UnidentifiedImageError: cannot identify image file: ")
    assert words in message


def test_an_unknown_file_stays_unknown() -> None:
    assert error(b"no image") == "Cannot read image 'a.jpg': UnidentifiedImageError: cannot identify image file"


def test_heic_is_read_where_pillow_heif_is(monkeypatch: pytest.MonkeyPatch, forget_heic: None) -> None:
    """The opener is registered when the first HEIC comes, not before."""
    opened: list[str] = []

    class Decoder(ImageFile.ImageFile):
        format = "HEIF"

        def _open(self) -> None:
            opened.append("HEIF")
            self._size, self._mode = (4, 2), "RGB"

        def load(self):  # type: ignore[no-untyped-def]
            self.im = Image.new("RGB", (4, 2), "blue").im

    def register_heif_opener() -> None:
        Image.register_open("HEIF", Decoder, lambda prefix: prefix[4:12] == b"ftypheic")

    monkeypatch.setattr(Image, "OPEN", {**Image.OPEN})
    monkeypatch.setattr(Image, "ID", [*Image.ID])
    monkeypatch.setitem(sys.modules, "pillow_heif", types.SimpleNamespace(register_heif_opener=register_heif_opener))
    read_image(EncodedImage("a.png", png))
    assert not register_heic.cache_info().currsize
    assert read_image(EncodedImage("a.heic", lambda: HEIC)).getpixel((0, 0)) == (0, 0, 255)
    assert opened
    assert "it is HEIC, and pillow-heif cannot read it" in error(HEIC.replace(b"heic", b"mif1", 1))


def test_real_heic() -> None:
    pillow_heif = pytest.importorskip("pillow_heif", reason="pip install 'velm[heic]'")
    buffer = io.BytesIO()
    pillow_heif.from_pillow(Image.new("RGB", (64, 48), "red")).save(buffer)
    red = read_pixels(EncodedImage("a.heic", buffer.getvalue), 48)
    assert red.shape == (3, 48, 64)
    assert red[0].min() > 240
    assert red[1:].max() < 20
