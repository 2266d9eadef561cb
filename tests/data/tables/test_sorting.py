from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from velm.data.tables import sorting
from velm.data.tables.sorting import index_type, parts, stable_order


@pytest.mark.parametrize(
    "keys",
    [
        np.random.default_rng(0).random(3000),
        np.random.default_rng(1).integers(0, 9, 3000, dtype=np.int32),
        np.random.default_rng(2).integers(0, 2**64, 3000, dtype=np.uint64),
        np.array([2**64 - 1, 0, 2**64 - 1, 2**63, 0] * 100, np.uint64),
        np.array([-(2**31), 2**31 - 1, -1, 0] * 100, np.int32),
        np.array([-(2**63), 2**63 - 1, -1, 0] * 100, np.int64),
        np.array([-1.5, 1.5, 1e-300, 0.0] * 100),
        np.full(200, 7),
        np.array([1.0] + [0.0] * 200),
        np.zeros(0),
    ],
)
def test_the_order_is_that_of_a_stable_sort(keys: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    for part in (2**16, 50):  # in one part, in many
        monkeypatch.setattr(sorting, "PART", part)
        order = stable_order(keys)
        assert order.dtype == np.int32
        assert order.tolist() == np.argsort(keys, kind="stable").tolist()


def test_equal_keys_are_in_one_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sorting, "PART", 10)
    keys = np.random.default_rng(0).integers(0, 300, 5000)
    found = [set(keys[places].tolist()) for places in parts(keys)]
    assert 60 <= len(found) <= 65
    assert all(max(one) < min(other) for one, other in pairwise(found))


def test_indices_are_as_small_as_can_be() -> None:
    assert (index_type(2**31 - 1), index_type(2**31)) == (np.int32, np.int64)
