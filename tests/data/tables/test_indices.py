from __future__ import annotations

import numpy as np
import pytest

from velm.data.tables.indices import Repeats, as_array, first_shown


def test_every_place_comes_as_often_as_it_has_texts() -> None:
    counts = np.array([2, 0, 1, 3, 0])
    repeats = Repeats(counts)
    assert list(repeats) == np.repeat(np.arange(5), counts).tolist() == repeats[:]
    assert repeats[-1] == 3
    assert repeats.starts.tolist() == [0, 2, 2, 3, 6]
    assert repeats.spread(np.array([7, 8, 9, 5, 6])).tolist() == [7, 7, 9, 5, 5, 5]
    with pytest.raises(IndexError, match="sample 6 of 6"):
        repeats[6]


def test_the_first_record_of_each_image() -> None:
    assert first_shown(None, 3) == first_shown(np.arange(3), 3) == range(3)
    assert as_array(first_shown(np.array([4, 7, 4, 0, 7]), 5)).tolist() == [0, 1, 0, 3, 1]


def test_a_range_becomes_small_numbers() -> None:
    array = as_array(range(2, 9, 3))
    assert (array.tolist(), array.dtype) == ([2, 5, 8], np.int32)
