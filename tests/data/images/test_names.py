"""What is an image by its name, for every reader of folders and shards."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from tiny import image_bytes, write_tar

from velm.commands.caption import find_images
from velm.data.formats.folder import Folder
from velm.data.formats.image_folder import ImageFolder
from velm.data.formats.webdataset import WebDataset
from velm.data.images.decode import read_image
from velm.data.images.names import image_suffixes, is_hidden
from velm.errors import DataError

HIDDEN = [
    "dog/._0.jpg", "dog/.0.jpg", "dog/.DS_Store", ".DS_Store", ".ipynb_checkpoints/0-checkpoint.jpg", "._dog/0.jpg",
    "dog/.ipynb_checkpoints/1.jpg", ".cache/dog/0.jpg", "__MACOSX/dog/._0.jpg", "__MACOSX/dog/0.jpg",
    "@eaDir/0.jpg/t.jpg",
]  # fmt: skip


def write(folder: Path, files: dict[str, bytes]) -> str:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return str(folder)


def of_folder(folder: Path, files: dict[str, bytes]) -> list[str]:
    records = Folder(path=write(folder, files), val_fraction=0, test_fraction=0).split("train")
    return [record.image_id for record in records]


def of_image_folder(folder: Path, files: dict[str, bytes]) -> list[str]:
    records = ImageFolder(path=write(folder, files), val_fraction=0, test_fraction=0).split("train")
    assert records.classes == ["dog"]
    return [record.image_id for record in records]


def of_shard(folder: Path, files: dict[str, bytes]) -> list[str]:
    path = write_tar(folder / "0.tar", {f"./{name}": content for name, content in files.items()})
    return sorted(record.image.name.removeprefix("0.tar/") for record in WebDataset(train=path).split("train"))


def of_caption(folder: Path, files: dict[str, bytes]) -> list[str]:
    return [str(Path(path).relative_to(folder)) for path in find_images([write(folder, files)])]


@pytest.mark.parametrize("read", [of_folder, of_image_folder, of_shard, of_caption])
def test_hidden_files_are_no_images(tmp_path: Path, read: Callable[[Path, dict[str, bytes]], list[str]]) -> None:
    folder = tmp_path / ".hidden" / "data"  # the folder that is named may be hidden itself
    files = {f"dog/{n}.{end}": b"a dog" if end == "txt" else image_bytes(n) for n in range(3) for end in ("jpg", "txt")}
    hidden = dict.fromkeys(HIDDEN, b"no image")
    hidden |= {name.replace(".jpg", ".txt"): b"no text" for name in HIDDEN}
    assert read(folder, {**files, **hidden}) == ["dog/0.jpg", "dog/1.jpg", "dog/2.jpg"]


@pytest.mark.parametrize("read", [of_folder, of_image_folder, of_shard, of_caption])
def test_every_ending_that_pillow_reads_is_an_image(
    tmp_path: Path, read: Callable[[Path, dict[str, bytes]], list[str]]
) -> None:
    image, files = Image.new("RGB", (8, 8), "red"), {}
    writable = Image.registered_extensions()
    for number, suffix in enumerate(sorted(image_suffixes() & set(writable))):
        buffer = io.BytesIO()
        try:
            image.save(buffer, writable[suffix])
        except (KeyError, OSError, ValueError):  # Pillow reads the format and does not write it, or not from RGB
            continue
        files |= {f"dog/{number}{suffix.upper()}": buffer.getvalue(), f"dog/{number}.txt": b"a dog"}
    assert len(files) > 40
    names = read(tmp_path, files)
    assert sorted(names) == sorted(name for name in files if not name.endswith(".txt"))
    assert {Path(name).suffix.lower() for name in names} >= {".avif", ".jfif", ".jpe", ".ppm", ".tiff", ".jp2", ".tga"}
    for name in names:
        if read is of_caption:
            assert read_image(tmp_path / name).size[0] >= 8


def test_what_pillow_cannot_decode_is_no_image_and_what_other_packages_decode_is_named() -> None:
    assert not image_suffixes() & {".pdf", ".mpg", ".h5", ".txt", ".json", ".eps", ".emf"}
    assert image_suffixes() >= {".heic", ".heif", ".avif", ".jxl", ".dcm", ".svg"}


def test_hidden_parts_of_paths() -> None:
    assert not any(map(is_hidden, ["a.jpg", "./a.jpg", "../a.jpg", "a/b.c/d", "a..jpg", "MACOSX/a.jpg"]))
    assert all(map(is_hidden, HIDDEN))


def test_a_folder_without_images_says_what_it_has(tmp_path: Path) -> None:
    write(tmp_path, {f"train/{name}": b"" for name in ("a.xyz", "b.xyz", "a.txt", ".c.jpg", "README")})
    expected = r"no images at all, but files with the endings \.xyz \(2\), none \(1\), \.txt \(1\)"
    for read in (lambda: Folder(path=str(tmp_path)).split("train"), lambda: find_images([str(tmp_path)])):
        with pytest.raises(DataError, match=expected):
            read()
