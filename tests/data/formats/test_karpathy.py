from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from velm.data.formats.karpathy import Karpathy
from velm.errors import DataError


def image(name: str, split: str, *texts: str, **more: object) -> dict:
    return {"filename": name, "split": split, "sentences": [{"raw": text, "tokens": []} for text in texts], **more}


COCO = [
    image("1.jpg", "train", "A man. ", "Men\n", filepath="train2014", cocoid=11),
    image("2.jpg", "restval", "A dog.", filepath="val2014", cocoid=12),
    image("3.jpg", "test", "A cat.", filepath="val2014", cocoid=13),
]


def write(folder: Path, images: object) -> str:
    for record in images if isinstance(images, list) else []:
        place = folder / "images" / record.get("filepath", "") / record.get("filename", "x.jpg")
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2)).save(place)
    (folder / "dataset.json").write_text(json.dumps({"images": images, "dataset": "test"}))
    return str(folder / "dataset.json")


def test_splits_images_and_sentences(tmp_path: Path) -> None:
    data = Karpathy(path=write(tmp_path, COCO), root=str(tmp_path / "images"))
    train = data.split("train")
    assert [(r.image_id, r.texts) for r in train] == [("11", ("A man.", "Men")), ("12", ("A dog.",))]
    assert train[1].image == str(tmp_path / "images/val2014/2.jpg")
    assert train.text_counts.tolist() == [2, 1]
    assert len(data.split("test")) == 1


def test_restval_can_stay_out(tmp_path: Path) -> None:
    data = Karpathy(path=write(tmp_path, COCO), root=str(tmp_path / "images"), restval_to_train=False)
    assert len(data.split("train")) == len(data.split("restval")) == 1


def test_flickr_has_neither_folders_nor_ids(tmp_path: Path) -> None:
    path = write(tmp_path, [image("a.jpg", "val", "A dog.")])
    assert Karpathy(path=path, root=str(tmp_path / "images")).split("val")[0].image_id == "a.jpg"


def error(path: str, split: str = "train", **options) -> str:
    with pytest.raises(DataError) as raised:
        Karpathy(path=path, **options).split(split)
    return str(raised.value)


def test_missing_split(tmp_path: Path) -> None:
    path = write(tmp_path, COCO)
    assert "no split 'val'. It has: 'train' (2 images), 'test' (1 images)" in error(path, "val")


def test_missing_images_file_and_root(tmp_path: Path) -> None:
    path = write(tmp_path, COCO)
    assert "2 of 2 records of split 'train'" in error(path)
    assert len(Karpathy(path=path, check_files=False).split("train")) == 2
    assert "Did you mean 'dataset.json'?" in error(str(tmp_path / "datasets.json"))
    assert "does not exist" in error(path, root=str(tmp_path / "none"))


def test_empty_sentences(tmp_path: Path) -> None:
    entries = [image("a.jpg", "train"), image("b.jpg", "train", "fine", " "), image("c.jpg", "train", "c")]
    path, options = write(tmp_path, entries), {"root": str(tmp_path / "images"), "check_files": False}
    assert "2 of 3 records" in (message := error(path, **options))
    assert "images/a.jpg: it has no text" in message
    assert "images/b.jpg: text 2 is empty" in message
    data = Karpathy(path=path, **options)
    data.max_bad = 1.0
    with pytest.warns(UserWarning, match="2 of 3 records"):
        assert [record.texts for record in data.split("train")] == [("fine",), ("c",)]


@pytest.mark.parametrize("content", ["no json", "[]", '{"images": [{"filename": "a.jpg"}]}', '{"annotations": {}}'])
def test_other_files(tmp_path: Path, content: str) -> None:
    (tmp_path / "other.json").write_text(content)
    assert "is not one of Karpathy's files" in error(str(tmp_path / "other.json"))
