"""Parquet with the images' bytes inside; what it shares with the other tables is in test_tables.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet
from tiny import assert_same_in_any_process, image_bytes, told

from velm.data.base import EncodedImage
from velm.data.formats import parquet as module
from velm.data.formats.parquet import Parquet
from velm.data.images.transforms import read_image
from velm.errors import DataError

FILES = [image_bytes(seed) for seed in range(7)]


def write(folder: Path, values: list[Any], kind: pa.DataType | None = None, statistics: bool = True) -> str:
    """Seven rows in groups of two, each image's text its number; the last is 'val'."""
    table = pa.table(
        {
            "image": pa.array(values, kind),
            "text": [str(i) for i in range(len(values))],
            "split": ["train"] * (len(values) - 1) + ["val"],
        }
    )
    parquet.write_table(table, folder / "a.parquet", row_group_size=2, write_statistics=statistics)
    return str(folder / "a.parquet")


def data(path: str, **options: Any) -> Parquet:
    return Parquet(**{"path": path, "image_bytes_column": "image", "image_id_column": None, **options})


STRUCTS = [{"bytes": content, "path": f"{i}.jpg"} for i, content in enumerate(FILES)]


@pytest.mark.parametrize(
    ("values", "kind"),
    [(FILES, pa.binary()), (FILES, pa.large_binary()), (STRUCTS, None)],
    ids=["bytes", "large", "hf"],
)
def test_images_are_the_bytes_of_their_rows(tmp_path: Path, values: list[Any], kind: pa.DataType | None) -> None:
    path = write(tmp_path, values, kind)
    train, val = (data(path).split(split) for split in ("train", "val"))
    assert [told(record) for record in train] == [(f"row {i + 1}", FILES[i], (str(i),), None) for i in range(6)]
    assert told(val[0])[1] == FILES[6]
    assert isinstance(train[3].image, EncodedImage)
    assert train[3].image.name == f"{path}, row 4"
    assert read_image(train[3].image).size == (8, 8)


def test_no_more_than_a_few_row_groups_are_held(tmp_path: Path) -> None:
    module._read_group.cache_clear()
    train = data(write(tmp_path, FILES)).split("train")
    assert module._read_group.cache_info().currsize == 0  # statistics say that nothing is missing: no byte is read
    [told(record) for record in train]
    assert module._read_group.cache_info().currsize == 3
    assert module._read_group.cache_info().maxsize == module.CACHED_GROUPS


def test_records_are_read_alike_in_any_process(tmp_path: Path) -> None:
    train = data(write(tmp_path, STRUCTS)).split("train")
    assert_same_in_any_process(train)
    encoded = data(write(tmp_path, FILES)).encoded_image()
    assert encoded is not None
    assert [encoded(i).load() for i in range(7)] == FILES


def test_rows_of_one_id_are_one_image(tmp_path: Path) -> None:
    table = pa.table({"image": [FILES[0], FILES[0], FILES[1]], "text": ["a", "b", "c"], "image_id": ["x", "x", "y"]})
    parquet.write_table(table, tmp_path / "a.parquet")
    train = data(str(tmp_path / "a.parquet"), image_id_column="image_id", split_column=None).split("train")
    assert [told(record) for record in train] == [
        ("x", FILES[0], ("a", "b"), None),
        ("y", FILES[1], ("c",), None),
    ]


def test_a_list_of_sentences_keeps_its_image(tmp_path: Path) -> None:
    table = pa.table({"image": FILES[:2], "text": [["a", "b"], ["c"]]})
    parquet.write_table(table, tmp_path / "a.parquet")
    train = data(str(tmp_path / "a.parquet"), split_column=None).split("train")
    # one image without an id for both sentences of its row
    assert [told(record)[1:3] for record in train] == [(FILES[0], ("a", "b")), (FILES[1], ("c",))]


@pytest.mark.parametrize("statistics", [True, False])
@pytest.mark.parametrize("struct", [True, False])
def test_rows_without_a_image(tmp_path: Path, statistics: bool, struct: bool) -> None:
    values: list[Any] = [{"bytes": f, "path": None} for f in FILES] if struct else list(FILES)
    values[3] = {"bytes": None, "path": "somewhere"} if struct else None
    path = write(tmp_path, values, statistics=statistics)
    with pytest.raises(DataError, match=r"row 4: column 'image' names no image"):
        data(path).split("train")
    dropped = data(path, missing_image="drop").split("train")
    assert [r.texts for r in dropped] == [("0",), ("1",), ("2",), ("4",), ("5",)]
    assert told(dropped[3])[1] == FILES[4]
    assert [r.image is None for r in data(path, missing_image="blank").split("train")] == [i == 3 for i in range(6)]


def test_a_column_that_holds_no_bytes(tmp_path: Path) -> None:
    path = write(tmp_path, [f"{i}.jpg" for i in range(7)])
    with pytest.raises(DataError, match=r"must hold bytes or structs with a field 'bytes', not string.*image_column"):
        data(path).split("train")
    with pytest.raises(
        DataError, match=r"has no column 'img'\. Did you mean 'image'\? Its columns: image, text, split"
    ):
        data(path, image_bytes_column="img").split("train")


def test_large_row_groups_are_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGE_GROUP", 100)
    monkeypatch.setattr(module, "CACHED_GROUPS", 2)
    with pytest.warns(UserWarning, match="Row groups of .* hold up to 0 MiB of images"):
        data(write(tmp_path, FILES)).split("train")


def test_bytes_that_are_no_image_are_named_by_their_row(tmp_path: Path) -> None:
    record = data(write(tmp_path, [b"no", *FILES[1:]])).split("train")[0]
    with pytest.raises(DataError, match=r"Cannot read image '.*a\.parquet, row 1'"):
        read_image(record.image)
