"""A seeded corpus of images and sentences with every fault that files have, and every oddity that is none."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

WORDS = (
    "red",
    "blue",
    "green",
    "small",
    "large",
    "dog",
    "cat",
    "tree",
    "house",
    "river",
    "runs",
    "sleeps",
    "near",
    "by",
)


def random_image(rng: np.random.Generator, width: int = 24, height: int = 20) -> Image.Image:
    """A smooth coloured image that differs from every other."""
    corners = rng.integers(0, 256, (3, 3, 3), dtype=np.uint8)
    return Image.fromarray(corners).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    target = io.BytesIO()
    image.save(target, kind, **options)
    return target.getvalue()


def sentence(rng: np.random.Generator) -> str:
    return "a " + " ".join(rng.choice(WORDS, 4))


def png_header(width: int, height: int) -> bytes:
    """A PNG that states its size and goes on with next to nothing."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )


def jpeg_of_size(content: bytes, width: int, height: int) -> bytes:
    """A JPEG whose header states another size."""
    place = content.index(b"\xff\xc0") + 5
    return content[:place] + struct.pack(">HH", height, width) + content[place + 4 :]


def unreadable(rng: np.random.Generator) -> Iterator[tuple[str, bytes]]:
    """Files of images that cannot be read."""
    jpeg = encoded(random_image(rng, 64, 48), "JPEG")
    for name, content in {
        "truncated.jpg": jpeg,
        "truncated.png": encoded(random_image(rng, 64, 48), "PNG"),
        "truncated.webp": encoded(random_image(rng, 64, 48), "WEBP", lossless=True),
        "truncated.tif": encoded(random_image(rng, 64, 48), "TIFF"),
        "truncated.bmp": encoded(random_image(rng, 64, 48), "BMP"),
    }.items():
        yield name, content[: len(content) // 2]
    yield "nearly_whole.jpg", jpeg[:-20]
    yield "only_its_first_bytes.jpg", jpeg[:4]
    yield "headless.jpg", jpeg[10:]
    yield "empty.jpg", b""
    yield "one_byte.jpg", b"\xff"
    yield "text.jpg", b"this is no image"
    yield "page_of_an_error.jpg", b"<!DOCTYPE html><html><body>404 Not Found</body></html>"
    yield "json.png", b'{"message": "rate limited"}'
    yield "noise.png", rng.bytes(500)
    yield "zeros.jpg", bytes(1000)
    yield "document.jpg", b"%PDF-1.7\n1 0 obj << /Type /Catalog >> endobj"
    yield "archive.jpg", b"PK\x03\x04" + rng.bytes(60)
    yield "film.jpg", b"\x00\x00\x00\x18ftypmp42" + rng.bytes(60)
    yield "drawing.png", b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'
    yield "huge.png", png_header(40_000, 40_000)
    yield "huge.jpg", jpeg_of_size(jpeg, 40_000, 40_000)
    yield "no_width.png", png_header(0, 20)
    png = bytearray(encoded(random_image(rng, 64, 48), "PNG"))
    png[png.index(b"IDAT") + 20] ^= 255
    yield "flipped_bits.png", bytes(png)


def odd(rng: np.random.Generator) -> Iterator[tuple[str, bytes]]:
    """Files of images that are unusual and can be read."""
    image = random_image(rng)
    grey, alpha = image.convert("L"), image.copy()
    alpha.putalpha(128)
    deep = Image.fromarray((np.asarray(grey).astype(np.uint16) << 8) | 7)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned
    yield "wrong_extension.jpg", encoded(image, "PNG")
    yield "wrong_extension.png", encoded(image, "JPEG")
    yield "CAPITALS.JPG", encoded(image, "JPEG")
    yield "cmyk.jpg", encoded(image.convert("CMYK"), "JPEG")
    yield "grey.jpg", encoded(grey, "JPEG")
    yield "progressive.jpg", encoded(image, "JPEG", progressive=True)
    yield "turned.jpg", encoded(image, "JPEG", exif=exif)
    yield "sixteen_bits.png", encoded(deep, "PNG")
    yield "sixteen_bits.tif", encoded(deep, "TIFF")
    yield "palette.png", encoded(image.quantize(256), "PNG")
    yield "transparent_palette.png", encoded(image.quantize(256), "PNG", transparency=0)
    yield "alpha.png", encoded(alpha, "PNG")
    yield "grey_and_alpha.png", encoded(alpha.convert("LA"), "PNG")
    yield "one_bit.png", encoded(image.convert("1"), "PNG")
    yield "moving.gif", encoded(image, "GIF", save_all=True, append_images=[random_image(rng), random_image(rng)])
    yield "moving.webp", encoded(image, "WEBP", save_all=True, append_images=[random_image(rng), random_image(rng)])
    yield "one_pixel.png", encoded(image.resize((1, 1)), "PNG")
    yield "a_line.png", encoded(image.resize((400, 1)), "PNG")
    yield "Ωμέγα und Leerzeichen.jpg", encoded(image, "JPEG")


@dataclass
class Corpus:
    """A folder with a table of everything in it.

    Attributes:
        folder: of the images and of captions.csv.
        bad: path of everything that cannot be used, as a quarantine names it, to the kind of fault.
        good: names of the images that can be.
    """

    folder: Path
    bad: dict[str, str] = field(default_factory=dict)
    good: list[str] = field(default_factory=list)

    @property
    def table(self) -> str:
        return str(self.folder / "captions.csv")


def build(folder: Path, *, good: int, bad_samples: bool, seed: int = 0) -> Corpus:
    """Write a corpus: `good` sound images and all the odd ones; with `faults`, one of each kind among them."""
    rng = np.random.default_rng(seed)
    corpus = Corpus(folder)
    folder.mkdir(parents=True)
    rows: list[bytes] = []

    def row(name: str | bytes, text: str | bytes) -> bytes:
        parts = [part if isinstance(part, bytes) else part.encode() for part in (name, text)]
        return b",".join(part if b"," not in part else b'"' + part + b'"' for part in parts) + b",train"

    def add(name: str, content: bytes | None, text: str | bytes | None = None) -> str:
        if content is not None:
            (folder / name).write_bytes(content)
        rows.append(row(name, sentence(rng) if text is None else text))
        return str(folder / name)

    for number in range(good):
        corpus.good.append(name := f"{number:05d}.jpg")
        add(name, encoded(random_image(rng), "JPEG", quality=90))
    for name, content in odd(rng):
        corpus.good.append(name)
        add(name, content)
    if bad_samples:
        for name, content in unreadable(rng):
            corpus.bad[add(name, content)] = name
        corpus.bad[add("missing.jpg", None)] = "missing"
        (folder / "folder.jpg").mkdir()
        corpus.bad[add("folder.jpg", None)] = "a folder"
        (folder / "dangling.jpg").symlink_to(folder / "nowhere.jpg")
        corpus.bad[add("dangling.jpg", None)] = "a dangling link"
        sound: Callable[[], bytes] = lambda: encoded(random_image(rng), "JPEG")  # noqa: E731
        for kind, text in {
            "empty": b"", "blank": b"   ", "other_blanks": "\u3000\u2003".encode(), "nul": b"a dog\0runs",
            "latin1": "ein Bär läuft".encode("latin-1"), "utf16": "a dog".encode("utf-16"),
            "long": b"word " * 20_000,
        }.items():  # fmt: skip
            corpus.bad[add(f"caption_{kind}.jpg", sound(), text)] = f"a caption that is {kind}"
        for outside in ("../outside.jpg", "/etc/outside.jpg", "a/../../outside.jpg"):
            rows.append(row(outside, sentence(rng)))
            corpus.bad[str(folder / outside)] = "outside of root"
        for kind, line in {
            "too many columns": b"a.jpg,a dog, a cat,train", "too few columns": b"a.jpg",
            "no image named": b",a dog,train", "a name that is not UTF-8": b"b\xe4r.jpg,a bear,train",
        }.items():  # fmt: skip
            rows.append(line)
            corpus.bad[line.decode("latin-1")] = kind
    order = rng.permutation(len(rows)).tolist()
    rows = [rows[i] for i in order]
    (folder / "captions.csv").write_bytes(b"\n".join([b"image_path,text,split", *rows, b""]))
    for number, line in enumerate(rows, start=1):  # rows without an image are named by their number
        if (kind := corpus.bad.pop(line.decode("latin-1"), None)) is not None:
            corpus.bad[f"{corpus.table}, row {number}"] = kind
    return corpus
