"""Pooling: what has no content has no say."""

from __future__ import annotations

import pytest
import torch

from velm.layers.pooling import AttentionPooling, Pooling

NAMES = ["mean", "max", "first", "last", "attention"]


def features(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def lengths_mask(lengths, size):
    return torch.arange(size) < torch.tensor(lengths)[:, None]


def pooling(name):
    torch.manual_seed(0)
    return Pooling(name, 8, heads=2).double()


@pytest.mark.parametrize("name", NAMES)
def test_a_masked_row_equals_the_row_cut_to_its_content(name):
    x, lengths = features(3, 5, 8), [5, 1, 3]
    pool = pooling(name)
    pooled = pool(x, lengths_mask(lengths, 5))
    for row, length in enumerate(lengths):
        torch.testing.assert_close(pooled[row : row + 1], pool(x[row : row + 1, :length]))


@pytest.mark.parametrize("name", NAMES)
def test_what_the_padding_holds_does_not_matter(name):
    x, mask = features(3, 5, 8), lengths_mask([5, 1, 3], 5)
    pool = pooling(name)
    other = torch.where(mask[..., None], x, 1e9)
    torch.testing.assert_close(pool(other, mask), pool(x, mask), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["mean", "max", "attention"])
def test_order_does_not_matter(name):
    x, order = features(2, 5, 8), torch.tensor([3, 0, 4, 1, 2])
    pool = pooling(name)
    torch.testing.assert_close(pool(x[:, order]), pool(x))


def test_by_hand():
    x = torch.tensor([[[1.0, -4.0], [3.0, -2.0], [9.0, 9.0]]])
    mask = torch.tensor([[True, True, False]])
    expected = {"mean": [2.0, -3.0], "max": [3.0, -2.0], "first": [1.0, -4.0], "last": [3.0, -2.0]}
    for name, values in expected.items():
        assert Pooling(name, 2)(x, mask).tolist() == [values]


@pytest.mark.parametrize("name", ["mean", "max", "attention"])
def test_nothing_to_pool_is_no_nan(name):
    assert pooling(name)(features(2, 3, 8), lengths_mask([3, 0], 3)).isfinite().all()


def test_attention_is_a_mean_while_the_query_says_nothing():
    pool = AttentionPooling(8, heads=2).double()
    torch.nn.init.zeros_(pool.query)
    x = features(2, 5, 8)
    torch.testing.assert_close(pool(x), pool(x.mean(dim=1, keepdim=True)))


def test_attention_learns_everywhere():
    pool = pooling("attention")
    pool(features(2, 5, 8)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in pool.parameters())


def test_errors():
    with pytest.raises(ValueError, match=r"Unknown pooling 'sum'. Available: mean, max, first, last, attention"):
        Pooling("sum", 8)
    with pytest.raises(ValueError, match="dim 10 is not divisible by heads 4"):
        Pooling("attention", 10)
