from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from velm.data.tables import columns
from velm.data.tables.columns import gathered, has_text, same_text, slices

TEXTS = ["a", None, " ", "b", "", "a", "\u2003", None, "b", "a b"]


def column() -> pa.ChunkedArray:
    return pa.chunked_array([TEXTS[:4], [], TEXTS[4:]], pa.string())


def test_slices_are_the_column(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "SLICE", 3)
    found = list(slices(column()))
    assert [start for start, _ in found] == [0, 3, 4, 7]
    assert [value for _, part in found for value in part.to_pylist()] == TEXTS
    assert [value for _, part in slices(pa.array(TEXTS)) for value in part.to_pylist()] == TEXTS
    assert has_text(column()).to_pylist() == [bool(text and text.strip()) for text in TEXTS]


def test_rows_are_gathered_in_the_order_asked_for() -> None:
    rows = np.array([9, 0, 3, 3, 4, 8, 1])
    assert gathered(column(), rows).to_pylist() == [TEXTS[row] for row in rows]
    assert gathered(column(), rows[:0]).to_pylist() == []


def test_the_same_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "SLICE", 4)
    rows, others = (each.reshape(-1) for each in np.meshgrid(np.arange(10), np.arange(10)))
    expected = [TEXTS[i] == TEXTS[j] for i, j in zip(rows.tolist(), others.tolist(), strict=True)]
    assert same_text(column(), rows, others).tolist() == expected
