from __future__ import annotations

import warnings

import numpy as np
import pytest

from velm.data.batches.samplers import ImageBatchSampler, ShareSampler, _deal


def images(count: int, captions: int) -> np.ndarray:
    return np.repeat(np.arange(count), captions)


def ragged(seed: int = 0) -> np.ndarray:
    """Images with 1 to 7 samples each, shuffled, under numbers with gaps."""
    rng = np.random.default_rng(seed)
    return rng.permutation(np.repeat(rng.permutation(500)[:60], rng.integers(1, 8, 60)))


CASES = [
    (images(50, 1), 8),
    (images(50, 5), 8),
    (images(50, 5), 49),
    (images(50, 5), 50),
    (images(7, 3), 7),
    (ragged(), 16),
    (ragged(1), 50),
]


def flat(batches: list[list[tuple[int, int]]]) -> list[int]:
    return [sample for batch in batches for _, sample in batch]


@pytest.mark.filterwarnings("ignore:batch_size 50 is more")
@pytest.mark.parametrize(("image_of", "size"), CASES)
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("epoch", [0, 3])
def test_no_image_is_twice_in_a_batch_and_no_sample_twice_in_an_epoch(
    image_of: np.ndarray, size: int, shuffle: bool, drop_last: bool, epoch: int
) -> None:
    sampler = ImageBatchSampler(image_of=image_of, batch_size=size, shuffle=shuffle, drop_last=drop_last)
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    for batch in batches:
        assert len({image_of[sample] for _, sample in batch}) == len(batch) <= size
        assert {e for e, _ in batch} == {epoch}
    samples = flat(batches)
    assert len(set(samples)) == len(samples)
    if not drop_last:
        assert sorted(samples) == list(range(len(image_of)))
        assert max(map(len, batches)) - min(map(len, batches)) <= 1
    else:
        assert len({len(batch) for batch in batches}) == 1 or len(samples) == len(image_of)


@pytest.mark.parametrize(("image_of", "size"), CASES[:3] + CASES[5:6])
def test_ranks_share_the_global_batch_that_one_process_would_take(image_of: np.ndarray, size: int) -> None:
    whole = list(ImageBatchSampler(image_of=image_of, batch_size=size // 2 * 2, drop_last=True))
    parts = [
        list(ImageBatchSampler(image_of=image_of, batch_size=size // 2, rank=r, world_size=2, drop_last=True))
        for r in range(2)
    ]
    assert len(parts[0]) == len(parts[1]) == len(whole)
    assert [one + other for one, other in zip(*parts, strict=True)] == whole
    assert all(len(one) == len(other) == size // 2 for one, other in zip(*parts, strict=True))


def test_ranks_have_equal_steps_and_lose_nothing_without_drop_last() -> None:
    image_of = images(23, 3)
    parts = [list(ImageBatchSampler(image_of=image_of, batch_size=4, rank=r, world_size=3)) for r in range(3)]
    assert len({len(part) for part in parts}) == 1
    assert sorted(sample for part in parts for sample in flat(part)) == list(range(69))
    assert all(part[-1] for part in parts)


@pytest.mark.filterwarnings("ignore:batch_size")
@pytest.mark.parametrize("count", range(1, 8))
@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_rank_has_something_in_every_step(count: int, world: int) -> None:
    """A rank without a share computes a stand-in, ~sample, which is of no rank's share."""
    ranks = [
        list(ImageBatchSampler(image_of=images(count, 1), batch_size=4, rank=r, world_size=world, drop_last=True))
        for r in range(world)
    ]
    for parts in zip(*ranks, strict=True):
        own = [sample for part in parts for _, sample in part if sample >= 0]
        assert len(own) == len(set(own)) == min(count, 4 * world)
        assert all(len(part) == 1 and ~part[0][1] in own for part in parts if part[0][1] < 0)
    shares = [list(ShareSampler(count, rank=r, world_size=world)) for r in range(world)]
    assert sorted(s for share in shares for s in share if s >= 0) == list(range(count))
    assert all(shares)


def test_idle_processes_are_warned_of() -> None:
    with pytest.warns(
        UserWarning, match="hold 2 samples instead of 12. 1 of 3 processes have nothing to do: use fewer"
    ):
        ImageBatchSampler(image_of=images(2, 1), batch_size=4, world_size=3, drop_last=True)


def test_epochs_may_repeat() -> None:
    sampler = ImageBatchSampler(image_of=images(8, 1), batch_size=4)
    first = list(sampler)
    sampler.repeats = True
    sampler.set_epoch(3)
    assert list(sampler) == first


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        sampler = ImageBatchSampler(image_of=images(40, 5), batch_size=8, seed=seed)
        sampler.set_epoch(epoch)
        return flat(list(sampler))

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)
    assert order(0, 2) == order(0, 2)


def test_who_is_in_a_batch_together_changes_from_epoch_to_epoch_and_within_one() -> None:
    """Dealing images round the batches would show the same company five times an epoch."""
    image_of = images(200, 5)
    sampler = ImageBatchSampler(image_of=image_of, batch_size=20)
    company = [frozenset(image_of[batch]) for epoch in range(2) for batch in sampler.global_batches(epoch)]
    shared = [len(a & b) for i, a in enumerate(company) for b in company[:i]]
    assert max(shared) < 12  # 2 by chance


def test_every_sample_has_the_same_chance_to_sit_out() -> None:
    sampler = ImageBatchSampler(image_of=images(10, 3), batch_size=8, drop_last=True)
    counts = np.bincount(np.concatenate([b for e in range(300) for b in sampler.global_batches(e)]), minlength=30)
    assert counts.min() > 200  # 240 expected
    assert counts.max() < 280


def test_without_shuffling_images_come_as_listed() -> None:
    batches = list(ImageBatchSampler(image_of=images(6, 1), batch_size=4, shuffle=False))
    assert batches == [[(0, 0), (0, 1), (0, 2)], [(0, 3), (0, 4), (0, 5)]]
    twice = ImageBatchSampler(image_of=images(4, 2), batch_size=4, shuffle=False)
    assert flat(list(twice)) == [0, 2, 4, 6, 1, 3, 5, 7]


def test_too_few_images_make_smaller_batches_and_both_numbers_are_told() -> None:
    with pytest.warns(
        UserWarning, match=r"batch_size 8 is more .* 3 images and 15 samples.*hold 3 samples instead of 8"
    ):
        sampler = ImageBatchSampler(image_of=images(3, 5), batch_size=8, drop_last=True)
    assert [len(batch) for batch in sampler] == [3] * 5
    with pytest.warns(UserWarning, match=r"on each of 2 processes .*hold 6 samples instead of 16"):
        sampler = ImageBatchSampler(image_of=images(6, 1), batch_size=8, drop_last=True, world_size=2)
    assert [len(batch) for batch in sampler] == [3]


def test_a_split_that_fills_its_batches_is_not_warned_about() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ImageBatchSampler(image_of=images(130, 1), batch_size=128)
        ImageBatchSampler(image_of=images(130, 5), batch_size=128, drop_last=True)
        ImageBatchSampler(image_of=images(3, 1), batch_size=128, shuffle=False)


def test_one_image_with_most_of_the_samples() -> None:
    image_of = np.concatenate([np.zeros(30, int), np.arange(1, 11)])
    with pytest.warns(UserWarning, match="up to 30 of one image"):
        sampler = ImageBatchSampler(image_of=image_of, batch_size=8)
    batches = list(sampler)
    assert sorted(flat(batches)) == list(range(40))
    assert all(len({image_of[s] for _, s in batch}) == len(batch) for batch in batches)


@pytest.mark.parametrize("seed", range(5))
def test_dealing_is_always_possible(seed: int) -> None:
    _, image = np.unique(ragged(seed), return_inverse=True)
    count = int(np.bincount(image).max())
    sizes = np.full(count, len(image) // count) + (np.arange(count) < len(image) % count)
    order = _deal(image, sizes, np.random.default_rng(seed))
    assert sorted(order) == list(range(len(image)))
    for batch in np.split(image[order], np.cumsum(sizes)[:-1]):
        assert len(set(batch.tolist())) == len(batch)


def test_lightning_finds_set_epoch() -> None:
    from lightning.fabric.utilities.data import _set_sampler_epoch
    from torch.utils.data import DataLoader

    sampler = ImageBatchSampler(image_of=images(4, 1), batch_size=2)
    _set_sampler_epoch(DataLoader(range(4), batch_sampler=sampler), 7)
    assert sampler.epoch == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_of": [0], "batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"image_of": [], "batch_size": 1}, "There are no samples"),
        (
            {"image_of": [0], "batch_size": 1, "rank": 2, "world_size": 2},
            r"rank must be in 0 ... world_size - 1 = 1, got 2",
        ),
    ],
)
def test_impossible_options_are_refused(options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageBatchSampler(**options)


def test_the_order_is_what_it_always_was() -> None:
    """A run that goes on, goes on in the order it began with, also by a later version."""
    singles = ImageBatchSampler(image_of=images(6, 1), batch_size=2, seed=1)
    singles.set_epoch(2)
    assert list(singles) == [[(2, 2), (2, 3)], [(2, 0), (2, 5)], [(2, 1), (2, 4)]]
    pairs = ImageBatchSampler(image_of=images(4, 2), batch_size=3, seed=1, drop_last=True)
    assert list(pairs) == [[(0, 4), (0, 1), (0, 2)], [(0, 5), (0, 0), (0, 6)]]
    ranks = [
        ImageBatchSampler(image_of=images(4, 2), batch_size=2, seed=5, rank=r, world_size=2, drop_last=True)
        for r in range(2)
    ]
    for rank in ranks:
        rank.set_epoch(1)
    assert [flat(list(rank)) for rank in ranks] == [[2, 4, 3, 1], [0, 7, 6, 5]]
    ragged_ones = ImageBatchSampler(image_of=np.array([3, 3, 9, 4, 4, 4, 7, 1]), batch_size=3, seed=5)
    assert [batch.tolist() for batch in ragged_ones.global_batches(4)] == [[7, 2, 5], [1, 3, 6], [4, 0]]


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("drop_last", [True, False])
def test_images_of_one_sample_each_come_in_the_order_of_all_others(shuffle: bool, drop_last: bool) -> None:
    """The way that does not look at the images is only faster."""
    options = {"batch_size": 7, "shuffle": shuffle, "drop_last": drop_last, "seed": 3}
    quick = ImageBatchSampler(image_of=images(103, 1), **options)
    slow = ImageBatchSampler(image_of=images(103, 1), **options)
    assert quick._image is None
    slow._image = np.arange(103, dtype=np.int32)
    assert list(quick) == list(slow)
