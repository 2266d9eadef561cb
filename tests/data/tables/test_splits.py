from __future__ import annotations

import pyarrow as pa
import pytest

from velm.data.tables import splits
from velm.data.tables.splits import by_split
from velm.errors import DataError

NAMES = ["train", "val", None, "train", "test", "train", "val", "train"]


def blocks(size: int) -> list[pa.Table]:
    table = pa.table({"text": [str(i) for i in range(8)], "split": NAMES})
    return [table.slice(start, size) for start in range(0, 8, size)]


@pytest.mark.parametrize("size", [1, 3, 8])
@pytest.mark.parametrize("piece", [1, 20, 10**6])
def test_rows_keep_their_order_within_their_split(size: int, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splits, "PIECE", piece)
    found = by_split(blocks(size), "column")
    assert {name: table["text"].to_pylist() for name, table in found.items()} == {
        name: [str(i) for i in range(8) if NAMES[i] == name] for name in dict.fromkeys(NAMES)
    }


def test_without_a_column_of_splits_all_are_one() -> None:
    found = by_split((block.drop_columns(["split"]) for block in blocks(3)), "column")
    assert {name: table.num_rows for name, table in found.items()} == {None: 8}
    assert by_split([], "column") == {}


def test_a_column_that_cannot_be_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splits, "MANY", 3)
    with pytest.raises(DataError, match=r"Column 'id' of 'a\.csv' holds more than 3 different values; name the one"):
        by_split(blocks(8), "Column 'id' of 'a.csv'")
