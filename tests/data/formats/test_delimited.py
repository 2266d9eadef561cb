from __future__ import annotations

import csv
import gzip
import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from velm.data.base import Record, first_records
from velm.data.formats import delimited, jsonl
from velm.data.formats.delimited import CSV, TSV
from velm.data.formats.jsonl import JSONL
from velm.data.formats.parquet import Parquet
from velm.errors import DataError

REAL = Path(__file__).resolve().parents[4] / "shared" / "data"

ROWS = [
    {"image_path": "images/a.png", "text": 'one, "two"\nthree', "split": "train", "image_id": "7"},
    {"image_path": "images/b.png", "text": "Ωμέγα", "split": "train", "image_id": "3"},
    {"image_path": "images/a.png", "text": "second of a", "split": "train", "image_id": "7"},
    {"image_path": "images/c.png", "text": "null", "split": "val", "image_id": "5"},
]


def rows(**changes: object) -> list[dict]:
    """`ROWS` with the second row changed."""
    return [ROWS[0], {**ROWS[1], **changes}, *ROWS[2:]]


def write(folder: Path, kind: str = "csv", content: list[dict] = ROWS) -> str:
    (folder / "images").mkdir(exist_ok=True)
    for name in "abc":
        Image.new("RGB", (2, 2)).save(folder / "images" / f"{name}.png")
    path = folder / f"data.{kind}"
    if kind == "parquet":
        parquet.write_table(pa.Table.from_pylist(content), path)
        return str(path)
    with (gzip.open if kind.endswith("gz") else open)(path, "wt", encoding="utf-8", newline="") as file:
        if kind.startswith("jsonl"):
            file.write("".join(json.dumps(row) + "\n" for row in content))
        else:
            out = csv.DictWriter(file, list(content[0]), delimiter="," if kind.startswith("csv") else "\t")
            out.writeheader()
            out.writerows(content)
    return str(path)


KINDS = {"csv": CSV, "csv.gz": CSV, "tsv": TSV, "tsv.gz": TSV, "jsonl": JSONL, "jsonl.gz": JSONL, "parquet": Parquet}


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_gives_the_same_records(tmp_path: Path, kind: str) -> None:
    data = KINDS[kind](path=write(tmp_path, kind))
    train = data.split("train")
    assert list(train) == [
        Record("7", str(tmp_path / "images/a.png"), ('one, "two"\nthree', "second of a")),
        Record("3", str(tmp_path / "images/b.png"), ("Ωμέγα",)),
    ]
    assert data.split("val")[0].texts == ("null",)
    assert train.text_counts.tolist() == [2, 1]


def test_records_are_a_sequence(tmp_path: Path) -> None:
    train = CSV(path=write(tmp_path)).split("train")
    assert len(train) == 2
    assert train[-1] == train[1]
    assert train[:1] == [train[0]]
    with pytest.raises(IndexError):
        train[2]
    assert list(pickle.loads(pickle.dumps(train))) == list(train)  # to workers that are spawned


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_row_may_hold_a_list_of_sentences_and_targets(tmp_path: Path, kind: str) -> None:
    content = [
        {"image_path": "images/a.png", "text": ["one", "two"], "to": ["eins", "zwei"], "split": "train", "image_id": 1},
        {"image_path": "images/b.png", "text": ["three"], "to": ["drei"], "split": "train", "image_id": 2},
    ]
    train = KINDS[kind](path=write(tmp_path, kind, content), target_column="to").split("train")
    assert [record.texts for record in train] == [("one", "two"), ("three",)]
    assert [record.targets for record in train] == [("eins", "zwei"), ("drei",)]
    assert train[0].image_id == "1"


def test_in_json_lines_lists_and_sentences_may_mix_and_columns_may_be_absent(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": ["a", "b"], "id": 1}\n\n{"id": 2, "text": "c", "more": {}}\n')
    data = JSONL(path=str(path), image_column=None, split_column=None, image_id_column="id")
    assert [record.texts for record in data.split("train")] == [("a", "b"), ("c",)]


def test_text_without_images(tmp_path: Path) -> None:
    train = CSV(path=write(tmp_path), image_column=None, image_id_column=None).split("train")
    assert [record.texts for record in train] == [(row["text"],) for row in ROWS[:3]]
    assert all(record.image is None for record in train)
    assert len({record.image_id for record in train}) == 3


def test_images_go_by_their_path_without_an_id(tmp_path: Path) -> None:
    train = CSV(path=write(tmp_path), image_id_column=None).split("train")
    assert [(record.image_id, len(record.texts)) for record in train] == [("images/a.png", 2), ("images/b.png", 1)]


def test_other_names_of_splits_and_columns(tmp_path: Path) -> None:
    content = [{"file": r["image_path"], "caption": r["text"], "part": r["split"].replace("val", "dev")} for r in ROWS]
    data = CSV(
        path=write(tmp_path, content=content), image_column="file", text_column="caption", split_column="part",
        image_id_column=None, splits={"val": "dev"},
    )  # fmt: skip
    assert len(data.split("val")) == 1
    assert len(data.split("train")) == 2


def test_root_is_where_paths_start(tmp_path: Path) -> None:
    content = [{**row, "image_path": Path(row["image_path"]).name} for row in ROWS]
    path = write(tmp_path, content=content)
    assert CSV(path=path, root=str(tmp_path / "images")).split("train")[1].image == str(tmp_path / "images/b.png")


# what is wrong with the data, each with its own message


def error(path: str, split: str = "train", kind: type = CSV, **options) -> str:
    with pytest.raises(DataError) as raised:
        kind(path=path, **options).split(split)
    return str(raised.value)


def test_missing_file_names_the_nearest(tmp_path: Path) -> None:
    write(tmp_path)
    assert "There is no file" in (message := error(str(tmp_path / "dataa.csv")))
    assert message.endswith("Did you mean 'data.csv'?")
    assert "does not exist either" in error(str(tmp_path / "nowhere" / "data.csv"))


def test_missing_root(tmp_path: Path) -> None:
    assert "does not exist" in error(write(tmp_path), root=str(tmp_path / "nowhere"))


def test_missing_column_names_the_nearest_and_all(tmp_path: Path) -> None:
    message = error(write(tmp_path), text_column="texts")
    assert "has no column 'texts'. Did you mean 'text'? Its columns: image_path, text, split, image_id." in message
    assert message.endswith("Set text_column to the right one.")
    assert error(write(tmp_path), split_column="fold").endswith("or split_column to null if there is none.")


def test_missing_split_lists_those_there_are(tmp_path: Path) -> None:
    message = error(write(tmp_path), "test")
    assert "no rows of split 'test' in column 'split'. It has: 'train' (3 rows), 'val' (1 rows)" in message
    assert "splits: {test: <its name>}" in message


def test_without_a_split_column_everything_is_train(tmp_path: Path) -> None:
    path = write(tmp_path)
    assert len(CSV(path=path, split_column=None).split("train")) == 3
    assert "split_column is null, so its 4 rows are 'train'" in error(path, "val", split_column=None)


@pytest.mark.parametrize("text", ["", "  "])
def test_empty_caption_names_the_row(tmp_path: Path, text: str) -> None:
    message = error(write(tmp_path, content=rows(text=text)))
    assert "row 2: column 'text' is empty" in message


def test_null_caption_target_and_id_are_empty(tmp_path: Path) -> None:
    assert "row 2" in error(write(tmp_path, "jsonl", rows(text=None)), kind=JSONL)
    assert "'image_id' is empty" in error(write(tmp_path, content=rows(image_id="")))
    content = [{**row, "to": "x" if row["image_id"] != "3" else ""} for row in ROWS]
    assert "column 'to' is empty" in error(write(tmp_path, content=content), target_column="to")
    assert "its list of texts is empty" in error(write(tmp_path, "jsonl", rows(text=[])), kind=JSONL)


def test_targets_that_do_not_fit_their_texts(tmp_path: Path) -> None:
    content = [{"text": ["a", "b"], "to": ["c"]}]
    options = {
        "image_column": None,
        "image_id_column": None,
        "split_column": None,
        "target_column": "to",
        "kind": JSONL,
    }
    assert "row 1: 2 texts but 1 targets" in error(write(tmp_path, "jsonl", content), **options)
    content = [{"text": ["a", "b"], "to": "c"}]
    assert "must all be lists or none" in error(write(tmp_path, "jsonl", content), **options)


def test_images_that_are_not_there_are_counted_and_named(tmp_path: Path) -> None:
    path = write(tmp_path, content=rows(image_path="images/z.png"))
    message = error(path)
    assert "1 of 2 records of split 'train'" in message
    assert "images/z.png" in message
    assert len(CSV(path=path, check_files=False).split("train")) == 2


@pytest.mark.parametrize("outside", ["../other/x.png", "/etc/x.png", "images/../../x.png"])
def test_images_outside_root_are_refused(tmp_path: Path, outside: str) -> None:
    path = write(tmp_path, content=rows(image_path=outside))
    message = error(path)
    assert f"names the image {outside!r}, which is outside" in message
    assert "allow_outside" in message
    assert len(CSV(path=path, allow_outside=True, check_files=False).split("train")) == 2


def test_a_row_without_a_image(tmp_path: Path) -> None:
    path = write(tmp_path, content=rows(image_path=""))
    assert "row 2: column 'image_path' names no image" in (message := error(path))
    assert "Set missing_image to 'drop'" in message
    assert "row 2 (the first below the header is 1): column 'image_path'" in error(path, missing_image="error")
    assert [r.image_id for r in CSV(path=path, missing_image="drop").split("train")] == ["7"]
    assert [r.image is None for r in CSV(path=path, missing_image="blank").split("train")] == [False, True]


def test_rows_without_a_image_and_without_an_id_are_images_of_their_own(tmp_path: Path) -> None:
    content = [{**row, "image_path": "" if row["image_id"] == "7" else row["image_path"]} for row in ROWS]
    train = CSV(path=write(tmp_path, content=content), image_id_column=None, missing_image="blank").split("train")
    assert [r.texts[0] for r in train] == [row["text"] for row in ROWS[:3]]


def test_dropping_everything_says_so(tmp_path: Path) -> None:
    content = [{**row, "image_path": ""} for row in ROWS]
    assert "names an image in column 'image_path'" in error(write(tmp_path, content=content), missing_image="drop")


def test_a_image_in_two_splits(tmp_path: Path) -> None:
    content = [*ROWS, {**ROWS[0], "split": "val"}]
    path = write(tmp_path, content=content)
    assert "1 images of" in (message := error(path))
    assert "'7' in train and val" in message
    assert "allow_overlap" in message
    assert len(CSV(path=path, allow_overlap=True).split("val")) == 2


def test_an_id_with_two_images_is_two_records_of_one_image(tmp_path: Path) -> None:
    path = write(tmp_path, content=rows(image_id="7"))
    with pytest.warns(UserWarning, match=r"row 2, an image id has several files: '7' is 'images/a.png' and 'images/b"):
        train = CSV(path=path).split("train")
    assert [(record.image_id, len(record.texts)) for record in train] == [("7", 2), ("7", 1)]
    assert train.image_indices.tolist() == [0, 0]
    assert first_records(train).tolist() == [0, 0]


def test_an_image_with_two_ids_is_a_warning(tmp_path: Path) -> None:
    path = write(tmp_path, content=rows(image_path="images/a.png"))
    with pytest.warns(UserWarning, match=r"a file has several ids: 'images/a.png' is image '7' and image '3'"):
        assert len(CSV(path=path).split("train")) == 2
    assert len(CSV(path=path, image_id_column=None).split("train")) == 1  # what the warning says


def test_files_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("just\nsome, text\n")
    (tmp_path / "empty").write_text("")
    path = str(tmp_path / "text")
    assert "Cannot read" in error(path, kind=Parquet)
    assert "row 1: the row is not JSON" in error(path, kind=JSONL)
    assert "Cannot read" in error(str(tmp_path / "empty"))
    (tmp_path / "list").write_text("[null]\n")
    assert "row 1: the row is not a JSON object: null" in error(str(tmp_path / "list"), kind=JSONL)


def test_a_row_with_too_many_fields(tmp_path: Path) -> None:
    path = Path(write(tmp_path))
    path.write_text(path.read_text().replace("\n", "\nimages/a.png,one,two,train,7\n", 1))
    message = error(str(path))
    assert "row 1: the row has 5 columns, the header 4: 'images/a.png,one,two,train,7'" in message
    assert "must be quoted" in message


def test_columns_that_are_no_text(tmp_path: Path) -> None:
    content = [{**row, "image_path": {"bytes": b"x"}} for row in ROWS]
    assert "'image_path' of" in (message := error(write(tmp_path, "parquet", content), kind=Parquet))
    assert "must hold text, not struct" in message
    content = [{"text": {"raw": "a"}}, {"text": [["a"]]}]
    options = {"image_column": None, "image_id_column": None, "split_column": None, "kind": JSONL}
    message = error(write(tmp_path, "jsonl", content), **options)
    assert "row 1: column 'text' holds an object" in message
    assert "row 2: column 'text' holds a list of lists or objects" in message


@pytest.mark.skipif(not (REAL / "flickr8k").is_dir(), reason="the Flickr8k photographs are not there")
def test_flickr8k() -> None:
    data = CSV(path=str(REAL / "flickr8k" / "captions.csv"))
    assert {name: len(data.split(name)) for name in ("train", "val", "test")} == {
        "train": 6000,
        "val": 1000,
        "test": 800,
    }
    assert set(data.split("train").text_counts.tolist()) == {5}


@pytest.mark.skipif(not (REAL / "multi30k").is_dir(), reason="the Multi30k sentences are not there")
def test_multi30k() -> None:
    data = CSV(
        path=str(REAL / "multi30k" / "translations.csv.gz"), text_column="en", target_column="de",
        allow_outside=True, missing_image="drop",
    )  # fmt: skip
    train = data.split("train")
    assert len(train) == 6743
    assert train[0].texts == ("A little girl climbing into a wooden playhouse.",)
    assert train[0].targets == ("Ein kleines Mädchen klettert in ein Spielhaus aus Holz.",)


# --- weights of sentences


def test_weights_of_sentences(tmp_path: Path) -> None:
    content = [{**row, "w": weight} for row, weight in zip(ROWS, ("2", "0.5", "1", "3"), strict=True)]
    train = CSV(path=write(tmp_path, content=content), weight_column="w").split("train")
    assert [record.weights for record in train] == [(2.0, 1.0), (0.5,)]
    assert CSV(path=write(tmp_path, content=content)).split("train")[0].weights is None
    lists = [{"text": ["a", "b"], "w": [1, 2]}, {"text": ["c"], "w": [3.5]}]
    options = {"image_column": None, "image_id_column": None, "split_column": None, "weight_column": "w"}
    made = JSONL(path=write(tmp_path, "jsonl", lists), **options)
    assert [each for record in made.split("train") for each in record.weights] == [1.0, 2.0, 3.5]


@pytest.mark.parametrize("weight", ["", "often", "-1", "nan", "inf"])
def test_weights_that_are_none(tmp_path: Path, weight: str) -> None:
    content = [{**row, "w": weight if row["image_id"] == "3" else "1"} for row in ROWS]
    message = error(write(tmp_path, content=content), weight_column="w")
    assert f"row 2: column 'w' holds {weight!r}, which is not a weight of at least 0" in message
    lists = [{"text": ["a", "b"], "w": [1]}]
    options = {"image_column": None, "image_id_column": None, "split_column": None, "weight_column": "w"}
    assert "2 texts but 1 weights" in error(write(tmp_path, "jsonl", lists), kind=JSONL, **options)


def messy(kind: str) -> str:
    """Rows of 40 images in three splits, out of order, many of them bad in one way or another."""
    images = [i * 7 % 40 for i in range(400)]
    content = [
        {
            "image_path": "" if i % 31 == 0 else f"../{i}.png" if i % 37 == 0 else f"images/{image}.png",
            "text": "" if i % 11 == 0 or image == 39 else f"a long sentence that has the number {i}",
            "split": ("train", "train", "val", "test")[image % 4],
        }
        for i, image in enumerate(images)
    ]
    if kind == "jsonl":
        lines = [json.dumps(row if i % 5 else {**row, "text": [row["text"], "b"]}) for i, row in enumerate(content)]
        return "".join("[1]\n" if i % 23 == 0 else line + "\n" for i, line in enumerate(lines))
    lines = [",".join(row.values()) for row in content]
    bad = {i: line + ",one more" for i, line in enumerate(lines) if i % 29 == 0} | {
        i: line.replace("long", "\udcff") for i, line in enumerate(lines) if i % 17 == 0
    }
    return "\n".join(["image_path,text,split", *(bad.get(i, line) for i, line in enumerate(lines)), ""])


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@pytest.mark.filterwarnings("ignore:.* cannot be used")
def test_the_size_of_blocks_changes_nothing(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"data.{kind}"
    path.write_text(messy(kind), encoding="utf-8", errors="surrogateescape")
    found = []
    for small in (False, True):
        if small:
            monkeypatch.setattr(delimited, "BLOCK_BYTES", 200)
            monkeypatch.setattr(jsonl, "BLOCK_LINES", 3)
        data = KINDS[kind](path=str(path), image_id_column=None, check_files=False)
        data.max_bad = 9.0  # an image can be bad in several ways
        train, val = data.split("train"), data.split("val")
        found.append((list(train), train.bad_samples, list(val), val.bad_samples))
    assert found[0] == found[1]
    assert len(found[0][0]) > 15
    assert len(found[0][1]) > 40


@pytest.mark.parametrize("lines", [1, 50_000])
def test_values_of_json_lines_are_texts_in_any_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: int
) -> None:
    """Numbers are as they are written, and NaN is null: one bad row."""
    monkeypatch.setattr(jsonl, "BLOCK_LINES", lines)
    path = tmp_path / "data.jsonl"
    texts = ['"a"', "NaN", '["b", 4, "c"]', "3", "2.50", "true", "null"]
    ids = ["7", '"7"', '"001"', "1", "7.0", "2", "3"]
    both = zip(texts, ids, strict=True)
    path.write_text("".join(f'{{"text": {text}, "image_id": {image_id}}}\n' for text, image_id in both))
    data = JSONL(path=str(path), image_column=None, split_column=None)
    data.max_bad = 0.5
    with pytest.warns(UserWarning, match=r"row 2 \(column 'text' is empty"):
        train = data.split("train")
    assert [(record.image_id, record.texts) for record in train] == [
        ("7", ("a", "2.50")), ("001", ("b", "4", "c")), ("1", ("3",)), ("2", ("true",)),
    ]  # fmt: skip
    assert len(train.bad_samples) == 2


def test_a_column_that_does_not_name_splits(tmp_path: Path) -> None:
    content = [{"text": f"dog {i}", "id": i} for i in range(10_001)]
    message = error(write(tmp_path, content=content), split_column="id", image_column=None, image_id_column=None)
    assert "Column 'id' of" in message
    assert "holds more than 10,000 different values; name the one that says the split" in message


def test_rows_of_one_image_are_found_in_any_order(tmp_path: Path) -> None:
    images = [f"{number % 17}.png" for number in np.random.default_rng(0).integers(0, 500, 400)]
    content = [{"image_path": image, "text": f"text {i}", "split": "train"} for i, image in enumerate(images)]
    train = CSV(path=write(tmp_path, content=content), image_id_column=None, check_files=False).split("train")
    assert [(record.image_id, record.texts) for record in train] == [
        (image, tuple(f"text {i}" for i, other in enumerate(images) if other == image))
        for image in dict.fromkeys(images)
    ]
