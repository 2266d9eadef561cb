"""Exact search finds what sorting all scores finds, whatever the parts, the blocks and the ties."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from velm.search import exact
from velm.search.exact import top_k


def store(rows: int, dim: int, seed: int, distinct: int | None = None) -> list[np.ndarray]:
    """Parts of unit vectors; with `distinct`, of so many different ones, which gives ties."""
    vectors = np.random.default_rng(seed).standard_normal((distinct or rows, dim))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
    if distinct:
        vectors = vectors[np.random.default_rng(seed).integers(0, distinct, rows)]
    return [np.ascontiguousarray(part) for part in np.array_split(vectors, 3)]


def by_sorting(parts, live, queries, k):
    scores = (queries.double().numpy() @ np.concatenate(parts).astype(np.float64).T).astype(np.float32)
    scores[:, ~np.concatenate(live)] = -np.inf
    order = [np.lexsort((np.arange(len(row)), -row))[:k] for row in scores]
    return [[i for i in rows if row[i] > -np.inf] for rows, row in zip(order, scores, strict=True)]


@pytest.mark.parametrize("queries", [1, 4, 9])
@pytest.mark.parametrize("distinct", [None, 7])
@pytest.mark.parametrize("k", [1, 10, 5000])
def test_as_sorting_everything(monkeypatch, queries, distinct, k):
    monkeypatch.setattr(exact, "BLOCK", 100)
    monkeypatch.setattr(exact, "HALF_BLOCK", 130)
    parts = store(1000, 16, seed=queries, distinct=distinct)
    live = [np.random.default_rng(i).random(len(part)) > 0.3 for i, part in enumerate(parts)]
    asked = functional.normalize(torch.randn(queries, 16, generator=torch.Generator().manual_seed(k)), dim=1)
    found = top_k(parts, live, asked, k)
    assert [[row for row, _ in of_query] for of_query in found] == by_sorting(parts, live, asked, k)


def test_half_precision_is_no_more_than_a_filter(monkeypatch):
    """Rows whose products are equal in half precision are ordered by their exact scores."""
    base = functional.normalize(torch.randn(64, generator=torch.Generator().manual_seed(0)), dim=0)
    rows = [base.half().clone() for _ in range(500)]
    for number, row in enumerate(rows):  # one unit in the last place of one component
        row[number % 64] = torch.nextafter(row[number % 64], torch.tensor(float(number % 3 - 1)).half())
    parts = [torch.stack(rows).numpy()]
    live = [np.ones(500, bool)]
    assert len(torch.mv(torch.from_numpy(parts[0]), base.half()).unique()) < 5
    few = top_k(parts, live, base[None], 20)
    monkeypatch.setattr(exact, "FEW", 0)
    many = top_k(parts, live, base[None], 20)
    assert few == many


def test_where_sums_are_in_half_precision_it_is_not_used(monkeypatch):
    def rounded(block, query):
        raise AssertionError("the product in half precision was used")

    monkeypatch.setattr(exact, "_sums_in_float32", lambda parts, queries: False)
    monkeypatch.setattr(torch.Tensor, "mv", rounded)
    parts = store(50, 8, seed=0)
    assert len(top_k(parts, [np.ones(len(p), bool) for p in parts], torch.eye(8)[:1], 3)[0]) == 3


def test_nothing_to_find():
    assert top_k([], [], torch.eye(4)[:2], 3) == [[], []]
    assert top_k([np.zeros((2, 4), np.float16)], [np.zeros(2, bool)], torch.eye(4)[:1], 3) == [[]]
