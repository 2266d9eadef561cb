from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from velm.data.tables import duplicates as alike
from velm.data.tables import sorting
from velm.data.tables.duplicates import first_alike, text_hashes

TEXTS = ["dog", "", "a dog", "dog", "god", "ein Mädchen", "a dog", "犬", "", "x" * 300, "dog", "y" * 300, "x" * 300]
KINDS = [pa.string(), pa.large_string()]


def wanted(texts: list[str | None]) -> list[int]:
    return [[each or "" for each in texts].index(text or "") for text in texts]


def chunked(texts: list[str | None], kind: pa.DataType, size: int) -> pa.ChunkedArray:
    parts = [pa.array([None, *texts[i : i + size], "dog"], kind) for i in range(0, len(texts), size)]
    return pa.chunked_array([part.slice(1, len(part) - 2) for part in parts], kind)  # chunks may begin anywhere


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 5, 100])
def test_rows_are_found_alike_whatever_their_order_and_chunks(kind: pa.DataType, size: int) -> None:
    for seed in range(3):
        texts = np.random.default_rng(seed).permutation(TEXTS).tolist()
        first = first_alike(chunked(texts, kind, size))
        assert first is not None
        assert first.tolist() == wanted(texts)


def test_many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sorting, "PART", 100)  # in many parts
    texts = [f"{n % 1700:x}" for n in np.random.default_rng(0).integers(0, 5000, 4000)]
    first = first_alike(chunked(texts, pa.string(), 700))
    assert first is not None
    assert first.tolist() == wanted(texts)


def test_none_where_all_are_different() -> None:
    assert first_alike(chunked(sorted(set(TEXTS)), pa.string(), 4)) is None
    assert first_alike(pa.chunked_array([], pa.string())) is None


def test_missing_texts_are_the_same() -> None:
    first = first_alike(pa.chunked_array([["a", None, "b"], [None, "a"]]))
    assert first is not None
    assert first.tolist() == [0, 1, 2, 1, 0]


@pytest.mark.parametrize("modulus", [1, 3])
def test_different_texts_of_one_hash_are_told_apart(modulus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alike, "text_hashes", lambda column: text_hashes(column) % np.uint64(modulus))
    first = first_alike(chunked(list(TEXTS), pa.string(), 4))
    assert first is not None
    assert first.tolist() == wanted(list(TEXTS))


def test_hashes_differ_between_texts_and_in_place_and_length() -> None:
    texts = [
        "",
        "a",
        "b",
        "ab",
        "ba",
        "aab",
        "aba",
        "\0",
        "\0\0",
        "a\0",
        *(f"images/{i:06d}.jpg" for i in range(20_000)),
    ]
    hashes = text_hashes(pa.chunked_array([texts]))
    assert len(np.unique(hashes)) == len(texts)
    assert np.unique(hashes >> np.uint64(58), return_counts=True)[1].max() < 500  # parts of a sort are of one size
