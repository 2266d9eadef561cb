"""Batches by length: each sample once, none above the budget, as many batches on every rank and in every epoch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from velm.data.base import Record
from velm.data.batches.buckets import LengthBatchSampler, sample_lengths
from velm.data.batches.samplers import ImageBatchSampler
from velm.data.batches.samples import CaptionSamples
from velm.data.text.word import WordTokenizer


def batches(lengths: np.ndarray, epoch: int = 0, **options) -> list[list[int]]:
    sampler = LengthBatchSampler(lengths=lengths, image_of=np.arange(len(lengths)), batch_size=4, **options)
    sampler.set_epoch(epoch)
    found = list(sampler)
    assert len(found) == len(sampler)
    assert all(pair[0] == epoch for batch in found for pair in batch)
    return [[sample for _, sample in batch] for batch in found]


@given(
    st.lists(st.integers(3, 40), min_size=4, max_size=60).map(np.array), st.integers(40, 200), st.integers(1, 4),
    st.integers(0, 3),
)  # fmt: skip
def test_a_budget_of_tokens(lengths: np.ndarray, budget: int, world_size: int, epoch: int) -> None:
    ranks = [batches(lengths, epoch, max_tokens=budget, rank=r, world_size=world_size) for r in range(world_size)]
    assert len({len(rank) for rank in ranks}) == 1
    for together in zip(*ranks, strict=True):
        assert len({len(batch) for batch in together}) == 1
        assert all(len(batch) * lengths[batch].max() <= budget for batch in together)
    seen = [sample for rank in ranks for batch in rank for sample in batch]
    assert len(seen) == len(set(seen)) == len(lengths) - len(lengths) % world_size
    sizes = [[len(batch) for batch in batches(lengths, e, max_tokens=budget, world_size=world_size)] for e in (0, 1)]
    assert sorted(sizes[0]) == sorted(sizes[1])


def test_fewer_samples_than_ranks() -> None:
    ranks = [batches(np.array([3, 9]), max_tokens=9, world_size=4, rank=rank) for rank in range(4)]
    assert sorted(sample for [batch] in ranks[:2] for sample in batch) == [0, 1]
    assert all(sample < 0 for [batch] in ranks[2:] for sample in batch)


def test_the_budget_is_used() -> None:
    lengths = np.array([14, 12, 9, 7, 7, 6, 6, 5, 5, 4, 4, 4])
    assert sorted(map(len, batches(lengths, max_tokens=36))) == [2, 4, 6]


def test_batches_of_one_size_need_less_padding() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 40, 400)

    def padded(found: list[list[int]]) -> float:
        return sum(len(batch) * lengths[batch].max() for batch in found) / sum(lengths[batch].sum() for batch in found)

    plain = ImageBatchSampler(image_of=np.arange(400), batch_size=4, drop_last=True)
    assert padded([[sample for _, sample in batch] for batch in plain]) > 1.3
    assert padded(batches(lengths)) < 1.03
    assert {len(batch) for batch in batches(lengths)} == {4}


def test_neighbours_and_order_change_with_the_epoch_and_the_seed_alone() -> None:
    lengths = np.random.default_rng(0).integers(5, 9, 100)
    first = batches(lengths, 0)
    assert first == batches(lengths, 0)
    assert {tuple(sorted(batch)) for batch in first} != {tuple(sorted(batch)) for batch in batches(lengths, 1)}
    assert first != batches(lengths, 0, seed=1)


def test_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="a single sample has 9 tokens: raise it, or lower max_length"):
        batches(np.array([3, 9]), max_tokens=8)
    with pytest.raises(ValueError, match="need each image once per epoch"):
        LengthBatchSampler(lengths=[3, 3], image_of=[0, 0], batch_size=1)


@pytest.mark.parametrize(("captions", "expected"), [("random", [6, 4]), ("first", [4, 4]), ("all", [4, 6, 4])])
def test_the_longest_sentence_a_sample_may_come_with(captions: str, expected: list[int]) -> None:
    records = [Record("a", None, ("a b", "a b c d e f"), ("a", "b")), Record("b", None, ("a",), ("a b",))]
    tokenizer = WordTokenizer()
    tokenizer.train(["a b c d e f"])
    items = CaptionSamples(records, tokenizer=tokenizer, transform=None, captions=captions, max_length=6)
    assert sample_lengths(items).tolist() == expected
