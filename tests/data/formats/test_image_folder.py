from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from tiny import image_bytes

from velm.data.base import Record
from velm.data.formats.image_folder import ImageFolder
from velm.errors import DataError
from velm.testing import assert_contract

REAL = Path(__file__).resolve().parents[4] / "shared" / "data" / "imagenette"


def put(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(image_bytes(number))


def test_sentences_are_templates_with_the_name_of_the_class(tmp_path: Path) -> None:
    put(tmp_path, "train/gas_pump/b.jpg", "train/gas_pump/a.JPG", "train/dog/deep/c.png", "val/cat/d.jpg")
    (tmp_path / "train/dog/README.md").write_text("no image")
    (tmp_path / "train/.hidden").mkdir()
    data = ImageFolder(path=str(tmp_path), templates=["a photo of a {}.", "{}"])
    train = data.split("train")
    assert train[:2] == [
        Record("train/dog/deep/c.png", str(tmp_path / "train/dog/deep/c.png"), ("a photo of a dog.", "dog"),
               metadata={"class": "dog", "class_index": 1}),
        Record("train/gas_pump/a.JPG", str(tmp_path / "train/gas_pump/a.JPG"), ("a photo of a gas pump.", "gas pump"),
               metadata={"class": "gas pump", "class_index": 2}),
    ]  # fmt: skip
    assert train[-1].image_id == "train/gas_pump/b.jpg"
    assert train.text_counts.tolist() == [2, 2, 2]
    assert list(pickle.loads(pickle.dumps(train))) == list(train)
    assert data.split("val")[0].metadata == {"class": "cat", "class_index": 0}  # numbered over all splits


def test_names_and_order_of_a_table(tmp_path: Path) -> None:
    put(tmp_path, "train/n02/a.jpg", "train/n01/b.jpg")
    (tmp_path / "c.csv").write_text("folder,label\nn02,dog\nn00,cat\nn01,English springer\n")
    train = ImageFolder(path=str(tmp_path), labels=str(tmp_path / "c.csv")).split("train")
    assert [(r.texts, r.metadata["class_index"]) for r in train] == [
        (("a photo of a English springer.",), 2),
        (("a photo of a dog.",), 0),
    ]


def test_without_folders_of_splits_names_decide(tmp_path: Path) -> None:
    put(tmp_path, *(f"{kind}/{i}.jpg" for kind in ("cat", "dog") for i in range(30)))
    data = ImageFolder(path=str(tmp_path), val_fraction=0.3, test_fraction=0.2)
    found = {split: {r.image_id for r in data.split(split)} for split in ("train", "val", "test")}
    assert sum(map(len, found.values())) == len(set.union(*found.values())) == 60
    assert_contract(lambda: ImageFolder(path=str(tmp_path), val_fraction=0.3, test_fraction=0.2))


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    path = str(tmp_path)
    with pytest.raises(DataError, match="There is no folder"):
        ImageFolder(path=f"{path}/none")
    with pytest.raises(DataError, match=r"has no folders of classes, such as .*dog"):
        ImageFolder(path=path).split("train")
    put(tmp_path, "train/dog/a.jpg")
    with pytest.raises(DataError, match=r"has no split 'val'\. It has: 'train' \(1 images\)"):
        ImageFolder(path=path).split("val")
    with pytest.raises(ValueError, match="their sum must be below 1"):
        ImageFolder(path=path, val_fraction=1)
    for templates in (["a photo"], ["{} {}"], []):
        with pytest.raises(ValueError, match=r"templates are captions with one \{\} for the class"):
            ImageFolder(path=path, templates=templates)
    (tmp_path / "c.csv").write_text("folder,name\ndog,dog\n")
    with pytest.raises(DataError, match="must have the columns folder and label; it has: folder, name"):
        ImageFolder(path=path, labels=str(tmp_path / "c.csv")).split("train")
    (tmp_path / "c.csv").write_text("folder,label\ndogs,dog\n")
    with pytest.raises(DataError, match=r"has no row for 1 of the folders of .*: dog\. Did you mean 'dogs'\?"):
        ImageFolder(path=path, labels=str(tmp_path / "c.csv")).split("train")


@pytest.mark.skipif(not REAL.is_dir(), reason="needs ../shared/data/imagenette")
def test_imagenette() -> None:
    data = ImageFolder(path=str(REAL), labels=str(REAL / "classes.csv"))
    assert (len(data.split("train")), len(data.split("val"))) == (400, 500)
    assert data.split("val")[0].texts == ("a photo of a cassette player.",)
    assert {record.metadata["class_index"] for record in data.split("train")} == set(range(10))
