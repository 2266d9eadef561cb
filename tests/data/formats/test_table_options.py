"""Tables as spreadsheets, pandas and scripts write them: dialect, column names, captions, held-out images."""

from __future__ import annotations

import csv
import io
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from velm import registry
from velm.data.base import DetectedFormat, Records
from velm.data.formats.delimited import CSV, TSV
from velm.data.tables import records
from velm.data.tables.captions import parse_list
from velm.data.tables.records import factorize
from velm.errors import BadDataError, DataError, MissingSplitError

HEADER = ("image_path", "text", "split", "image_id")
ROWS = [[f"images/{i}.jpg", f"dog number {i}, é", "val" if i > 30 else "train", f"{i:03}"] for i in range(34)]
pytestmark = pytest.mark.filterwarnings("ignore:Detected in")


def write(
    folder: Path,
    rows: Sequence[Sequence[str]] = ROWS,
    header: Sequence[str] | None = HEADER,
    delimiter: str = ",",
    encoding: str = "utf-8",
    **options: Any,
) -> str:
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter, **{"lineterminator": "\n", **options}).writerows(
        [*([header] * bool(header)), *rows]
    )
    path = folder / "data.csv"
    path.write_bytes(out.getvalue().encode(encoding))
    return str(path)


def texts(path: str, kind: type = CSV, **options: Any) -> list[str]:
    """The captions of 'train' and 'val', in order."""
    data = kind(path=path, check_files=False, **options)
    return [text for split in ("train", "val") for record in data.split(split) for text in record.texts]


EXPECTED = [row[1] for row in ROWS]


@pytest.mark.parametrize("kind", [CSV, TSV])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
def test_delimiter_and_encoding_are_detected(tmp_path: Path, kind: type, delimiter: str, encoding: str) -> None:
    path = write(tmp_path, delimiter=delimiter, encoding=encoding, lineterminator="\r\n")
    assert texts(path, kind) == EXPECTED


def test_what_is_detected_is_said_once(tmp_path: Path) -> None:
    data = CSV(path=write(tmp_path, delimiter=";", encoding="utf-16"), check_files=False)
    with pytest.warns(DetectedFormat, match=r"data.csv': encoding: utf-16; delimiter: semicolon\.$"):
        data.split("train")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data.split("val")
        CSV(path=write(tmp_path), check_files=False).split("val")  # the default is nothing to report


@pytest.mark.parametrize(("delimiter", "name"), [(";", "semicolon"), ("\t", "tab"), ("\t", "\\t"), ("~", "~")])
def test_options_say_what_is_not_detected(tmp_path: Path, delimiter: str, name: str) -> None:
    path = write(tmp_path, delimiter=delimiter, encoding="cp1252")
    assert texts(path, delimiter=name, encoding="cp1252") == EXPECTED


def test_options_that_do_not_exist(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"delimiter is one character, or comma, semicolon, tab, pipe; got ', '\."):
        texts(write(tmp_path), delimiter=", ")
    with pytest.raises(DataError, match=r"Unknown encoding 'cp12522' of .* set encoding to its own: cp1252"):
        texts(write(tmp_path), encoding="cp12522")
    with pytest.raises(DataError, match=r"is not ascii: 'ascii' codec can't decode .* set encoding"):
        texts(write(tmp_path), encoding="ascii")


def test_other_encodings_are_advised_for_rows_that_are_not_utf8(tmp_path: Path) -> None:
    path = write(tmp_path, encoding="cp1252")
    with pytest.raises(BadDataError, match=r"is not UTF-8(.|\n)*set encoding to its own: cp1252"):
        texts(path)


@pytest.mark.parametrize(
    "line", ["{}, {}, {}, {}\n", "{} | {} | {} | {}\n", '{} , "{}" , {} , {}\n', '{}| "{}"| {}| {}\n']
)
def test_blanks_around_cells_are_no_part_of_them(tmp_path: Path, line: str) -> None:
    rows = [[cell.replace(",", "" if '"' not in line else ",") for cell in row] for row in [HEADER, *ROWS]]
    path = tmp_path / "data.csv"
    path.write_text("".join(line.format(*row) for row in rows))
    assert texts(str(path)) == [row[1] for row in rows[1:]]
    assert CSV(path=str(path), check_files=False).split("val")[0].image == str(tmp_path / "images" / "31.jpg")


# names of columns


@pytest.mark.parametrize("header", [("Image_Path", " TEXT", "split ", "ID"), ("image_path", "Text", "SPLIT", "id")])
def test_columns_are_found_in_another_case_and_with_blanks(tmp_path: Path, header: tuple[str, ...]) -> None:
    path = write(tmp_path, header=header)
    assert texts(path) == texts(path, text_column=" text") == EXPECTED


def test_a_column_that_is_there_twice(tmp_path: Path) -> None:
    rows = [["a", "b", "c"]]
    options = {"image_column": None, "check_files": False}
    with pytest.raises(DataError, match=r"has 2 columns 'text': rename one in the file, text_column may mean either"):
        CSV(path=write(tmp_path, rows, ("text", "text", "x")), **options).split("train")
    with pytest.raises(DataError, match=r"has the columns 'Text' and 'TEXT'"):
        CSV(path=write(tmp_path, rows, ("Text", "TEXT", "x")), **options).split("train")
    assert CSV(path=write(tmp_path, rows, ("x", "text", "x")), **options).split("train")[0].texts == ("b",)
    assert CSV(path=write(tmp_path, rows, ("", "text", "")), **options).split("train")[0].texts == ("b",)


def test_a_file_without_header(tmp_path: Path) -> None:
    path = write(tmp_path, header=None)
    with pytest.raises(DataError, match=r"has no header: its first line is data \('images/0.jpg'") as raised:
        texts(path)
    suggested = str(raised.value).split("columns: [")[1].split("]")[0].split(", ")
    assert suggested == ["image_path", "text", "split", "column_4"]
    assert texts(path, columns=suggested) == EXPECTED  # what the message says works
    assert texts(path, columns=suggested, header=False) == EXPECTED
    with pytest.raises(DataError, match=r"columns has 2 names, but the first row of .* has 4 cells: 'images/0.jpg'"):
        texts(path, columns=["image_path", "text"], delimiter=",")
    with pytest.raises(DataError, match=r"has no column 'image_path'"):
        texts(path, header=True)
    with pytest.raises(DataError, match="it is empty"):
        texts(write(tmp_path, [], None))


def test_columns_may_repeat_or_replace_the_header(tmp_path: Path) -> None:
    path = write(tmp_path)
    assert texts(path, columns=list(HEADER)) == EXPECTED
    assert (
        texts(path, columns=["a", "b", "c", "d"], header=True, image_column="a", text_column="b", split_column="c")
        == EXPECTED
    )


# several captions of a row


@pytest.mark.parametrize("columns", [["caption_0", "caption_1"], "caption_*", ["caption_*"], "Caption_?"[:-1] + "*"])
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_captions_in_several_columns(tmp_path: Path, columns: Any, kind: str) -> None:
    header, rows = ("image_path", "caption_0", "caption_1"), [["a.jpg", "one", "two"], ["b.jpg", "", "three"]]
    path = write(tmp_path, rows, header)
    if kind == "jsonl":
        Path(path).write_text("".join(json.dumps(dict(zip(header, row, strict=True))) + "\n" for row in rows))
    data = registry.datasets.build({"name": kind, "path": path, "text_column": columns, "check_files": False})
    assert [record.texts for record in data.split("train")] == [("one", "two"), ("three",)]


def test_a_caption_column_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no column 'texts'. Did you mean 'text'"):
        texts(write(tmp_path), text_column=["text", "texts"])
    with pytest.raises(DataError, match=r"has no column 'caption_\*'"):
        texts(write(tmp_path), text_column="caption_*")
    with pytest.raises(DataError, match="text_column is empty"):
        texts(write(tmp_path), text_column=[])


def test_captions_as_a_list_in_a_cell(tmp_path: Path) -> None:
    cells = ["['a dog', \"the dog's\"]", '["two", "three"]', "[dog] a plain caption", "['a' 'b']", "[1, 2]", "[]"]
    path = write(tmp_path, [[f"{i}.jpg", cell] for i, cell in enumerate(cells)], ("image_path", "text"))
    data = CSV(path=path, check_files=False)
    data.max_bad = 0.5
    with pytest.warns(UserWarning, match=r"lists in column 'text', opened as several texts"):
        train = data.split("train")
    assert [record.texts for record in train] == [
        ("a dog", "the dog's"), ("two", "three"), ("[dog] a plain caption",), ("a", "b"), ("[1, 2]",),
    ]  # fmt: skip
    assert [bad.cause.rpartition(": ")[2] for bad in train.bad_samples] == ["its list of texts is empty"]
    assert parse_list(str(["a", "b\n'\""])) == ["a", "b\n'\""]


# held-out images


def test_images_are_held_out_by_their_path(tmp_path: Path) -> None:
    rows = [[f"images/{i}.jpg", f"text {k}", str(3 * i + k)] for i in range(100) for k in range(3)]
    path = write(tmp_path, rows, ("image_path", "text", "image_id"))

    def split(**options: Any) -> dict[str, set[str]]:
        data = CSV(path=path, check_files=False, **{"image_id_column": None, **options})
        return {name: {record.image for record in data.split(name)} for name in ("train", "val", "test")}

    found = split(val_fraction=0.2, test_fraction=0.1)
    assert sum(map(len, found.values())) == len(set.union(*found.values())) == 100
    assert 10 < len(found["val"]) < 32
    assert split(val_fraction=0.2, test_fraction=0.1) == found != split(val_fraction=0.2, test_fraction=0.1, seed=1)
    with pytest.warns(UserWarning, match="several ids"):
        by_id = split(val_fraction=0.2, test_fraction=0.1, image_id_column="image_id")
    assert by_id == found  # an image under several ids is in one split
    write(tmp_path, rows[:9], ("image_path", "text", "image_id"))
    assert all(map(len, split(val_fraction=0.01, test_fraction=0.01).values()))  # at least one image each


def test_a_split_that_is_not_held_out(tmp_path: Path) -> None:
    path = write(tmp_path, ROWS, ("image_path", "text", "part", "image_id"))
    with pytest.raises(MissingSplitError, match=r"it has no column 'split', so its 34 rows are 'train'. Set val_fract"):
        CSV(path=path, check_files=False).split("val")
    with pytest.raises(MissingSplitError, match=r"no split 'test'. It has: 'train' \(\d+ rows\), 'val' .* Set test_fr"):
        CSV(path=path, check_files=False, val_fraction=0.2).split("test")
    with pytest.raises(DataError, match=r"has the column 'split'. Set split_column to null, or both fractions to 0"):
        CSV(path=write(tmp_path), check_files=False, val_fraction=0.2).split("val")
    with pytest.raises(ValueError, match="their sum must be below 1"):
        CSV(path=path, val_fraction=1.0)


# every row is accounted for


@pytest.mark.parametrize("kind", [CSV, TSV])
@pytest.mark.parametrize(
    "stray", [{5: '"stop" says the sign', 12: '"closed', 25: '"go says'}, {12: '"closed', 15: 'it"'}, {3: '"open'}]
)
def test_a_stray_quotation_mark_loses_no_row(tmp_path: Path, kind: type, stray: dict[int, str]) -> None:
    rows = [[image, stray.get(i, f"a dog {i}"), split, image_id] for i, (image, _, split, image_id) in enumerate(ROWS)]
    path = tmp_path / "data"
    separator = kind.default_delimiter
    path.write_text("".join(separator.join(row) + "\n" for row in [HEADER, *rows]))
    assert texts(str(path), kind) == [row[1] for row in rows]  # no cell needs quotation marks
    quoted = [
        [image, f'"{text}{separator} it says"' if i == 8 else text, *more]
        for i, (image, text, *more) in enumerate(rows)
    ]
    path.write_text("".join(separator.join(row) + "\n" for row in [HEADER, *quoted]))
    data = kind(path=str(path), check_files=False, quoting="minimal")
    data.max_bad = 1.0
    with pytest.warns(UserWarning, match="cannot be used"):
        train, val = data.split("train"), data.split("val")
    assert len(train) + len(val) + len(train.bad_samples) >= len(rows)
    assert "stray quotation mark joins" in train.bad_samples[0].cause
    assert "quoting: none" in train.bad_samples[0].advice
    assert train.faults is train.bad_samples


def test_a_row_is_as_long_as_it_likes(tmp_path: Path) -> None:
    rows = [[*row, "0.1 " * (900_000 if i == 4 else 2)] for i, row in enumerate(ROWS)]
    assert texts(write(tmp_path, rows, (*HEADER, "feature"))) == EXPECTED
    rows = [[*row, "0.1,\n" * (400_000 if i == 4 else 2)] for i, row in enumerate(ROWS)]
    assert texts(write(tmp_path, rows, (*HEADER, "feature"))) == EXPECTED


CELL = st.text(alphabet="ab \",;\t|\n'\u00e9\u4e00", min_size=1, max_size=8).filter(str.strip)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    captions=st.lists(CELL, min_size=1, max_size=12),
    other=st.lists(CELL, min_size=1, max_size=12),
    kind=st.sampled_from(["csv", "tsv", "jsonl"]),
    delimiter=st.sampled_from([",", ";", "\t", "|"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC, None]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le"]),
    end=st.sampled_from(["\n", "\r\n"]),
)
@example(['"', '"b\t'], ["a"], "tsv", "\t", None, "utf-8", "\n")
def test_rows_read_and_rows_named_are_all_rows(
    tmp_path: Path, captions: list[str], other: list[str], kind: str, delimiter: str, quoting: int | None,
    encoding: str, end: str,
) -> None:  # fmt: skip
    """Of any table: as many as there are, or a refusal; without quoting, cells are written as they are."""
    rows = [[f"{i}.jpg", caption, other[i % len(other)]] for i, caption in enumerate(captions)]
    header = ["image_path", "text", "other"]
    if kind == "jsonl":
        content = "".join(json.dumps(dict(zip(header, row, strict=True))) + end for row in rows)
    elif quoting is None:
        content = "".join(delimiter.join(row).replace("\n", " ") + end for row in [header, *rows])
    else:
        out = io.StringIO()
        csv.writer(out, delimiter=delimiter, quoting=quoting, lineterminator=end).writerows([header, *rows])
        content = out.getvalue()
    path = tmp_path / "data"
    path.write_bytes(content.encode(encoding))
    data = registry.datasets.build({"name": kind, "path": str(path), "check_files": False})
    data.max_bad = 1.0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            train = data.split("train")
    except DataError:
        assert quoting is None
        return
    assert isinstance(train, Records)
    assert len(train) + len(train.bad_samples) >= len(rows)
    if quoting is not None or kind == "jsonl":
        assert [record.texts[0].strip() for record in train] == [row[1].strip() for row in rows]


def test_a_long_column_is_numbered_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    values = [None, "", "a.jpg", "images/2.jpg", "b", "a.jpg", "images/12.jpg", "", None, "images/2.jpg", "\u4e00"] * 3
    column = pa.chunked_array([values[:5], values[5:20], values[20:]], pa.large_string()).slice(1)
    expected = factorize(column)
    monkeypatch.setattr(records, "PART_ROWS", 1)
    assert factorize(column).tolist() == expected.tolist()
    assert expected[:6].tolist() == [0, 1, 2, 3, 1, 4]
