"""Reading ahead: the order is kept, little is read before it is needed, and a fault is raised."""

from __future__ import annotations

import pytest
import torch

from velm.data.images.prefetch import read_batches
from velm.errors import DataError


def image(value: int) -> torch.Tensor:
    if value < 0:
        raise DataError(f"cannot read {value}")
    return torch.full((3, 2, 2), value, dtype=torch.uint8)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 100])
def test_order_and_sizes(batch_size):
    batches = list(read_batches(list(range(7)), image, batch_size))
    assert torch.cat(batches)[:, 0, 0, 0].tolist() == list(range(7))
    assert all(len(batch) == batch_size for batch in batches[:-1])


def test_only_the_next_batch_is_read_ahead():
    seen = []

    class Watched(list):
        def __getitem__(self, index):
            seen.append(index)
            return super().__getitem__(index)

    batches = read_batches(Watched(range(10)), image, 2)
    assert seen == []
    next(batches)
    assert seen == [0, 1, 2, 3]
    batches.close()


def test_no_images_and_a_fault():
    assert list(read_batches([], image, 2)) == []
    batches = read_batches([1, 2, -3], image, 2)
    assert len(next(batches)) == 2
    with pytest.raises(DataError, match="cannot read -3"):
        next(batches)
    with pytest.raises(ValueError, match="batch_size 0 is too small"):
        next(read_batches([1], image, 0))
