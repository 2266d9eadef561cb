"""An epoch that was left goes on with the very next batch, whoever reads it."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import Dataset

from velm.data.base import DataError
from velm.data.loader import ResumableLoader
from velm.data.samplers import PictureBatchSampler


class Keys(Dataset):
    """A sample is its own (epoch, number)."""

    def __getitem__(self, key):
        return torch.tensor(key)


def loader(workers=0, samples=23, batch_size=4, seed=5):
    sampler = PictureBatchSampler(picture_of=range(samples), batch_size=batch_size, seed=seed)
    return ResumableLoader(Keys(), batch_sampler=sampler, num_workers=workers, persistent_workers=workers > 0)


def epoch(source, number):
    source.batch_sampler.set_epoch(number)
    return [batch.tolist() for batch in source]


@pytest.mark.parametrize(("before", "after"), [(0, 0), (0, 2), (2, 0), (2, 1)])
@pytest.mark.parametrize("taken", [1, 3, 5])
def test_it_goes_on_with_the_next_batch(before, after, taken):
    whole = [epoch(loader(), number) for number in range(3)]
    first = loader(before)
    assert epoch(first, 0) == whole[0]
    first.batch_sampler.set_epoch(1)
    batches = iter(first)
    assert [next(batches).tolist() for _ in range(taken)] == whole[1][:taken]
    state = first.state_dict()
    assert state == {"taken": taken, "of": 6}

    second = loader(after)
    second.load_state_dict(state)
    assert epoch(second, 1) == whole[1][taken:]
    assert second.state_dict() == {"taken": 6, "of": 6}
    assert epoch(second, 2) == whole[2]


def test_a_whole_epoch_is_followed_by_the_next():
    source = loader()
    epoch(source, 0)
    again = loader()
    again.load_state_dict(source.state_dict())
    assert epoch(again, 1) == epoch(loader(), 1)
    fresh = loader()
    fresh.load_state_dict({"taken": 0, "of": 6})
    assert len(epoch(fresh, 0)) == len(fresh) == 6


def test_nothing_is_fetched_before_the_epoch_is_known():
    """Lightning asks for an iterator first and sets the epoch afterwards; workers would have fetched epoch 0."""
    source = loader(workers=2)
    batches = iter(source)
    source.batch_sampler.set_epoch(4)
    assert [batch.tolist() for batch in batches] == epoch(loader(), 4)


def test_a_place_in_another_epoch_is_refused():
    other = loader(batch_size=8)
    with pytest.raises(DataError, match="stopped after 2 of the 6 batches of an epoch, and an epoch has 3 now"):
        other.load_state_dict({"taken": 2, "of": 6})
    other.load_state_dict({"taken": 6, "of": 6})  # a whole epoch has no place in it
    assert len(epoch(other, 1)) == 3
