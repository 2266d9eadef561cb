from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from velm.data.formats.folder import Folder
from velm.data.formats.image_folder import ImageFolder
from velm.errors import DataError


def put(folder: Path, name: str, text: str | bytes | None = "a dog\n\n  two dogs \n", extension: str = ".txt") -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (2, 2)).save(path)
    if text is not None:
        path.with_suffix(extension).write_bytes(text if isinstance(text, bytes) else text.encode())


def error(folder: Path, split: str = "train", **options) -> str:
    with pytest.raises(DataError) as raised:
        Folder(path=str(folder), **options).split(split)
    return str(raised.value)


def test_subfolders_are_the_splits(tmp_path: Path) -> None:
    put(tmp_path, "train/b.PNG")
    put(tmp_path, "train/deep/a.jpg", "one")
    put(tmp_path, "test/c.jpg")
    (tmp_path / "train" / "README.md").write_text("no image")
    data = Folder(path=str(tmp_path))
    train = data.split("train")
    assert [(r.image_id, r.texts) for r in train] == [
        ("train/b.PNG", ("a dog", "two dogs")),
        ("train/deep/a.jpg", ("one",)),
    ]
    assert train[0].image == str(tmp_path / "train/b.PNG")
    assert len(data.split("test")) == 1
    assert "has no split 'val'. It has: 'train' (2 images), 'test' (1 images)" in error(tmp_path, "val")


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        (("train", "valid", "test"), ["train", "val", "test"]), (("Training", "Validation"), ["train", "val"]),
        (("train", "dev", "testing"), ["train", "val", "test"]), (("val", "test"), ["val", "test"]),
    ],
)  # fmt: skip
def test_other_words_for_splits(tmp_path: Path, folders: tuple[str, ...], splits: list[str]) -> None:
    for folder in folders:
        put(tmp_path, f"{folder}/dog/{folder}.png")
    for split, folder in zip(splits, folders, strict=True):
        assert Folder(path=str(tmp_path)).split(split)[0].image_id == f"{folder}/dog/{folder}.png"
        assert ImageFolder(path=str(tmp_path)).split(split)[0].metadata["class"] == "dog"
    (tmp_path / "notes").mkdir()
    put(tmp_path, "extra/a.png")
    with pytest.warns(UserWarning, match="the images in 'extra' are left out"):
        Folder(path=str(tmp_path)).split(splits[0])


def test_classes_are_no_splits_and_a_split_has_one_folder(tmp_path: Path) -> None:
    for name in ("valid", "invalid"):
        put(tmp_path, f"{name}/{name}.png")
    data = ImageFolder(path=str(tmp_path), val_fraction=0, test_fraction=0)
    assert data.split("train").classes == ["invalid", "valid"]
    put(tmp_path, "train/a.png")
    put(tmp_path, "val/a.png")
    assert "'val' and 'valid', both of 'val': join them" in error(tmp_path)


def test_else_names_decide_and_go_on_deciding(tmp_path: Path) -> None:
    for i in range(60):
        put(tmp_path, f"{i}.png")
    data = Folder(path=str(tmp_path), val_fraction=0.3, test_fraction=0.2)
    before = {split: {r.image_id for r in data.split(split)} for split in ("train", "val", "test")}
    assert sum(map(len, before.values())) == len(set.union(*before.values())) == 60
    assert 8 <= len(before["val"]) <= 28
    assert 4 <= len(before["test"]) <= 22
    for i in range(60, 70):
        put(tmp_path, f"{i}.png")
    for split, members in before.items():
        assert members <= {r.image_id for r in data.split(split)}


def test_all_for_training(tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    assert len(Folder(path=str(tmp_path), val_fraction=0, test_fraction=0).split("train")) == 1


def test_another_extension(tmp_path: Path) -> None:
    put(tmp_path, "train/a.png", extension=".caption")
    assert len(Folder(path=str(tmp_path), extension="caption").split("train")) == 1


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    assert "There is no folder" in error(tmp_path / "none")
    assert "no images at all" in error(tmp_path)
    put(tmp_path, "train/a.png", None)
    put(tmp_path, "train/b.png")
    assert "1 of 2 records" in (message := error(tmp_path))
    assert "train/a.png: there is no .txt file beside it" in message
    put(tmp_path, "train/a.png", " \n")
    assert "it has no text" in error(tmp_path)
    put(tmp_path, "train/a.png", b"\xff\xfe")
    assert "a.txt' is not UTF-8" in error(tmp_path)


@pytest.mark.parametrize("fractions", [(-0.1, 0.1), (0.5, 0.5)])
def test_impossible_fractions(tmp_path: Path, fractions: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="their sum must be below 1"):
        Folder(path=str(tmp_path), val_fraction=fractions[0], test_fraction=fractions[1])
