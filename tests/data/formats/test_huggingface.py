from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest
from tiny import assert_same_in_any_process, image_bytes, told

from velm.data.formats.huggingface import HFDataset
from velm.data.images.transforms import read_image
from velm.errors import DataError
from velm.registry import datasets
from velm.testing import assert_contract

FILES = [image_bytes(seed) for seed in range(4)]
ROWS = {"image": [{"bytes": f, "path": None} for f in FILES], "text": [f"dog {i}" for i in range(4)]}


def hf() -> Any:
    return pytest.importorskip("datasets", reason="pip install 'velm[hf]'")


def saved(folder: Path, columns: dict[str, list[Any]] = ROWS, *, features: bool = True) -> str:
    """A folder of one dataset without splits."""
    data = hf().Dataset.from_dict(columns)
    if features and "image" in columns:
        data = data.cast_column("image", hf().Image())
    data.save_to_disk(str(folder / "hf"))
    return str(folder / "hf")


def test_a_saved_folder_gives_the_files_as_they_were(tmp_path: Path) -> None:
    train = datasets.build({"name": f"hf/{saved(tmp_path)}"}).split("train")
    assert [told(r) for r in train] == [(f"row {i + 1}", FILES[i], (f"dog {i}",), None) for i in range(4)]
    assert read_image(train[0].image).size == (8, 8)
    assert train[2].image.name.endswith("hf/train, row 3")


def test_lists_of_sentences_targets_and_ids(tmp_path: Path) -> None:
    columns = {"image": ROWS["image"][:2], "en": [["a", "b"], ["c"]], "de": [["x", "y"], ["z"]], "id": [7, 8]}
    data = HFDataset(model_name=saved(tmp_path, columns), text_column="en", target_column="de", image_id_column="id")
    train = data.split("train")
    assert [told(r) for r in train] == [("7", FILES[0], ("a", "b"), ("x", "y")), ("8", FILES[1], ("c",), ("z",))]
    assert train.text_counts.tolist() == [2, 1]


def test_splits_under_their_names(tmp_path: Path) -> None:
    part = hf().Dataset.from_dict(ROWS)
    parts = {"train": part.select([3, 1]), "validation": part.select([2]), "eval": part.select([0])}
    hf().DatasetDict(parts).save_to_disk(str(tmp_path))
    data = HFDataset(model_name=str(tmp_path), splits={"test": "eval"})
    assert [[r.texts[0] for r in data.split(s)] for s in ("train", "val", "test")] == [
        ["dog 3", "dog 1"], ["dog 2"], ["dog 0"],
    ]  # fmt: skip
    assert told(data.split("train")[0])[1] == FILES[3]  # rows picked from a larger table
    with pytest.raises(DataError, match=r"no rows of split 'x'\. It has: 'train' \(2 rows\), 'val' \(1 rows\), 'test'"):
        data.split("x")
    with pytest.raises(DataError, match=r"splits: \{test: <its name>\}"):
        HFDataset(model_name=str(tmp_path)).split("test")


def test_it_keeps_the_contract(tmp_path: Path) -> None:
    part = hf().Dataset.from_dict({**ROWS, "id": list("abcd")})
    hf().DatasetDict({s: part.select([i]) for i, s in enumerate(("train", "val", "test"))}).save_to_disk(str(tmp_path))
    assert_contract(lambda: HFDataset(model_name=str(tmp_path), image_id_column="id"))


def test_images_are_read_alike_in_any_process(tmp_path: Path) -> None:
    train = HFDataset(model_name=saved(tmp_path)).split("train")
    assert_same_in_any_process(train)


def test_images_may_be_paths_or_plain_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(FILES[0])
    path = saved(tmp_path, {"image": [str(tmp_path / "a.jpg")], "text": ["a"]}, features=False)
    assert told(HFDataset(model_name=path).split("train")[0])[1] == FILES[0]
    path = saved(tmp_path / "bytes", {"image": [FILES[1]], "text": ["a"]}, features=False)
    assert told(HFDataset(model_name=path).split("train")[0])[1] == FILES[1]


def test_text_without_images(tmp_path: Path) -> None:
    train = HFDataset(model_name=saved(tmp_path, {"text": ["a", "a"]}), image_column=None).split("train")
    assert [(r.image_id, r.image) for r in train] == [("row 1", None), ("row 2", None)]


def test_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load_dataset(*args: Any, **options: Any) -> Any:
        asked.append((args, options))
        return hf().DatasetDict({"train": hf().Dataset.from_dict(ROWS)})

    monkeypatch.setattr(hf(), "load_dataset", load_dataset)
    data = datasets.build({"name": "hf/someone/images", "config": "small", "revision": "v1"})
    assert (len(data.split("train")), len(data.split("train"))) == (4, 4)
    assert asked == [(("someone/images", "small"), {"revision": "v1"})]  # once


# what is wrong


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "datasets":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"needs datasets, which is not installed: pip install 'velm\[hf\]'"):
        HFDataset(model_name="someone/images").split("train")


def test_what_cannot_be_loaded_says_from_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hf()
    with pytest.raises(DataError, match=r"Cannot load the dataset '.*', the folder: FileNotFoundError"):
        HFDataset(model_name=str(tmp_path)).split("train")

    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(hf(), "load_dataset", fail)
    with pytest.raises(DataError, match=r"from the hub \(there is no such folder here\): ConnectionError: no network"):
        HFDataset(model_name="someone/images").split("train")


def test_columns_that_are_not_what_they_should_be(tmp_path: Path) -> None:
    path = saved(tmp_path, {**ROWS, "n": [{"a": 1}] * 4, "k": [1] * 4, "to": ["a", "", "c", " "]})
    with pytest.raises(
        DataError, match=r"has no column 'texts'\. Did you mean 'text'\? .* Set text_column to the right"
    ):
        HFDataset(model_name=path, text_column="texts").split("train")
    with pytest.raises(DataError, match=r"has no column 'img'\..*Set image_column"):
        HFDataset(model_name=path, image_column="img").split("train")
    with pytest.raises(DataError, match=r"Column 'n' of the dataset .* must hold text, not struct"):
        HFDataset(model_name=path, text_column="n").split("train")
    with pytest.raises(DataError, match=r"(?s)2 of 4 records of .*row 2: column 'to' is empty"):
        HFDataset(model_name=path, target_column="to").split("train")
    for column in ("n", "k"):
        with pytest.raises(DataError, match=rf"Column '{column}' of .*hf/train must hold images, not"):
            HFDataset(model_name=path, image_column=column).split("train")


def test_a_row_without_a_image_is_named_when_it_is_read(tmp_path: Path) -> None:
    train = HFDataset(model_name=saved(tmp_path, {"image": [ROWS["image"][0], None], "text": ["a", "b"]})).split(
        "train"
    )
    with pytest.raises(DataError, match=r"Cannot read image '.*hf/train, row 2': DataError: the row has no image"):
        read_image(train[1].image)
