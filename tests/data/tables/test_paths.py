from __future__ import annotations

import json
import os
import re
import unicodedata
from pathlib import Path

import pyarrow as pa
import pytest

from velm.data.formats.delimited import CSV
from velm.data.formats.jsonl import JSONL
from velm.data.tables.paths import download_first, find_images, image_folder
from velm.errors import DataError


def folder(root: Path, *names: str) -> str:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return str(root)


def table(folder: Path, *paths: str, **options) -> JSONL:
    rows = [{"image_path": path, "text": f"text {number}", "split": "train"} for number, path in enumerate(paths)]
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return JSONL(path=str(folder / "data.jsonl"), image_id_column=None, **options)


def error(data: CSV | JSONL) -> str:
    with pytest.raises(DataError) as raised:
        data.split("train")
    return str(raised.value)


NFC, NFD = (unicodedata.normalize(form, "Café é/naïve.jpg") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(
    ("written", "there"),
    [
        ("images\\a.jpg", "images/a.jpg"),
        (".\\images\\a.jpg", "images/a.jpg"),
        ("images/deep\\a.jpg", "images/deep/a.jpg"),
        ("images/a", "images/a.png"),
        ("images/000.1", "images/000.1.webp"),
        ("images/a.jpg", "Images/a.JPG"),
        (NFC, NFD),
        (NFD, NFC),
        (NFD.removesuffix(".jpg").replace("/", "\\"), NFC),
        ("{root}\\images\\a.jpg", "images/a.jpg"),
        ("{root}/images/a", "images/a.jpg"),
    ],
)
def test_a_path_written_in_another_way_is_its_file(tmp_path: Path, written: str, there: str) -> None:
    root = folder(tmp_path, there, "other.jpg", f"{there}.txt")
    data = table(tmp_path, written.format(root=root), "other.jpg")
    with pytest.warns(UserWarning, match="1 image paths of .* are read all the same: "):
        train = data.split("train")
    assert [record.image for record in train] == [os.path.join(root, there), os.path.join(root, "other.jpg")]
    assert not train.bad_samples


def test_rows_that_spell_one_file_in_two_ways_are_one_image(tmp_path: Path) -> None:
    folder(tmp_path, "images/a.jpg")
    with pytest.warns(UserWarning, match="all the same"):
        (record,) = table(tmp_path, "images/a.jpg", "images\\a.jpg", "images/a").split("train")
    assert record.texts == ("text 0", "text 1", "text 2")


def test_a_name_that_is_there_as_it_is_written_is_taken(tmp_path: Path) -> None:
    names = ["a", "a.jpg", "A.jpg", NFC.replace("/", ""), NFD.replace("/", ""), "b\\c.jpg", "b/c.jpg"]
    root = folder(tmp_path, *names)
    assert find_images(root, pa.array(names)) == ({}, [])


def test_a_path_that_fits_several_files_is_missing_and_asks(tmp_path: Path) -> None:
    folder(tmp_path, "a.jpg", "a.png", "b.JPG", "B.jpg")
    data = table(tmp_path, "a", "b.jpg")
    assert "/a'. Is it 'a.jpg' or 'a.png'?" in (message := error(data))
    assert "/b.jpg'. Is it 'B.jpg' or 'b.JPG'?" in message


def test_another_ending_is_suggested(tmp_path: Path) -> None:
    folder(tmp_path, "images/a.png")
    assert "/images/a.jpg'. There is 'images/a.png'." in error(table(tmp_path, "images/a.jpg"))


def test_the_root_that_the_paths_start_from_is_suggested(tmp_path: Path) -> None:
    folder(tmp_path, "Images/flickr/a.jpg")
    root = str(tmp_path / "Images/flickr")
    assert f"There is 'a.jpg' in {root!r}: set root to it." in error(table(tmp_path, "a.jpg"))
    assert len(table(tmp_path, "a.jpg", root=root).split("train")) == 1
    deeper = table(tmp_path, "Images/flickr/a.jpg", root=str(tmp_path / "Images"))
    assert f"There is 'Images/flickr/a.jpg' in {str(tmp_path)!r}: set root to it." in error(deeper)


@pytest.mark.parametrize("links", [False, True])
def test_absolute_paths_inside_root_are_inside(tmp_path: Path, links: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    folder(tmp_path, "here/a.jpg", "here/b/c.jpg")
    if links:
        (tmp_path / "link").symlink_to(tmp_path / "here")
    root = str(tmp_path / ("link" if links else "here"))
    paths = [str(tmp_path / "here" / name) for name in ("a.jpg", "b/c.jpg", "b/../a.jpg")]
    train = table(tmp_path, *paths, root=root).split("train")
    assert [record.image for record in train] == paths
    monkeypatch.chdir(tmp_path)
    assert len(table(Path(), *paths, root="here").split("train")) == 3
    outside = [str(tmp_path / name) for name in ("hereafter/a.jpg", "here/../a.jpg")]
    assert "2 of 2" in error(table(tmp_path, *outside, root=root))


@pytest.mark.parametrize("head", ["/home/ada/data/", "C:\\Users\\ada\\", "/"])
def test_absolute_paths_of_another_computer(tmp_path: Path, head: str) -> None:
    folder(tmp_path, "images/a.jpg")
    message = error(table(tmp_path, f"{head}images/a.jpg"))
    assert "which is outside" in message
    assert f"There is 'images/a.jpg' inside: remove {head!r} from the paths." in message


def test_backslashes_do_not_lead_out_of_root(tmp_path: Path) -> None:
    folder(tmp_path, "secret.jpg")
    (tmp_path / "root").mkdir()
    assert "which is outside" in error(table(tmp_path, "..\\secret.jpg", root=str(tmp_path / "root")))


URLS = [f"https://example.org/{number}.jpg" for number in range(3)]


@pytest.mark.parametrize("options", [{}, {"check_files": False}, {"allow_outside": True}])
def test_urls_are_to_be_downloaded(tmp_path: Path, options: dict[str, bool]) -> None:
    message = error(table(tmp_path, *URLS, **options))
    assert re.fullmatch(
        r"The column 'image_path' of '.*data.jsonl' holds URLs, and VELM reads files, so download the images first, "
        r"with img2dataset --url_list \S+/data.jsonl --input_format jsonl --url_col image_path --caption_col text "
        r"--output_format webdataset --output_folder data, and then set dataset: "
        r"\{name: webdataset, train: 'data/\{00000..00000\}.tar'\}.",
        message,
    )


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("cc.v2.tsv", "--input_format tsv --url_col url --caption_col 'my text' --output_format webdataset"),
        ("my data.csv.gz", "--url_list 'my data.csv.gz' --input_format csv.gz "),
        ("laion.parquet", "train: 'laion/{00000..00002}.tar'"),
    ],
)  # fmt: skip
def test_the_command_that_downloads_fits_the_file(file: str, words: str) -> None:
    assert words in download_first(file, "url", "my text", 20_001)


def test_a_url_among_paths_is_a_bad_sample(tmp_path: Path) -> None:
    folder(tmp_path, "a.jpg")
    message = error(table(tmp_path, "a.jpg", URLS[0]))
    assert "1 of 2 records" in message
    assert f"names the URL '{URLS[0]}'" in message
    assert "download the images first" in message


def test_the_folder_of_some_images_is_found_below(tmp_path: Path) -> None:
    root = folder(tmp_path, "images/train/1.jpg", "images/val/2.jpg", ".hidden/1.jpg", "images/val/1.png")
    assert image_folder(["1.jpg"], root) == str(tmp_path / "images/train")
    assert image_folder(["1.png", "2.jpg"], root) == str(tmp_path / "images/val")
    assert image_folder(["train/1.jpg", "val/2.jpg"], root) == str(tmp_path / "images")
    assert image_folder(["1.jpg", "2.jpg"], root) is None


def test_missing_images_are_named_once_and_in_order(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("1.png", "a/2.png", "a/b/3.png"):
        (tmp_path / name).touch()
    (tmp_path / "a" / os.fsdecode(b"b\xe4r.png")).touch()  # a folder may hold names that are not UTF-8
    paths = ["1.png", "z/1.png", "a/2.png", " ", "a/1.png", "a/b/3.png", None, "z/1.png", "2.png", "a/./2.png"]
    found, bad_samples = find_images(str(tmp_path), pa.array(paths))
    assert [bad_sample.path for bad_sample in bad_samples] == [
        str(tmp_path / name) for name in ("z/1.png", "a/1.png", "2.png")
    ]
    assert "There is no image" in bad_samples[0].cause
    assert repr(str(tmp_path)) in bad_samples[0].advice
    assert not found
    assert find_images(str(tmp_path), pa.array([], pa.string())) == ({}, [])
