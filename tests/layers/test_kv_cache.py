"""A sequence that grows in place is what it would be if it were copied each time."""

from __future__ import annotations

import pytest
import torch

from velm.layers.kv_cache import INITIAL_CAPACITY, KVCache


def filled_cache(steps: int, seed: int = 0) -> tuple[KVCache, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(steps, 3, 2, generator=generator)
    cache = KVCache.of(vectors[0])
    for vector in vectors[1:]:
        cache = cache.append(vector)
    return cache, vectors


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("steps", [1, 2, INITIAL_CAPACITY, INITIAL_CAPACITY + 1, 2 * INITIAL_CAPACITY + 2])
def test_it_holds_what_was_appended(steps, grad) -> None:
    with torch.set_grad_enabled(grad):
        cache, vectors = filled_cache(steps)
        rows = torch.tensor([2, 0, 2, 1])
        chosen = cache.select(rows).append(torch.ones(4, 2))
    assert torch.equal(cache.tensor, vectors)
    assert torch.equal(chosen.tensor[:-1], vectors[:, rows])
    assert torch.equal(chosen.tensor[-1], torch.ones(4, 2))


@torch.no_grad()
def test_it_grows_in_place_and_only_once() -> None:
    cache, vectors = filled_cache(5)
    one = cache.append(torch.ones(3, 2))
    two = cache.append(torch.zeros(3, 2))
    assert one.tensor.data_ptr() == cache.tensor.data_ptr() != two.tensor.data_ptr()
    assert torch.equal(one.tensor, torch.cat([vectors, torch.ones(1, 3, 2)]))
    assert torch.equal(two.tensor, torch.cat([vectors, torch.zeros(1, 3, 2)]))
    assert torch.equal(cache.tensor, vectors)


def test_gradients_pass() -> None:
    first, second = torch.ones(1, 2, requires_grad=True), torch.ones(1, 2, requires_grad=True)
    KVCache.of(first).append(second).select(torch.tensor([0, 0])).tensor.sum().backward()
    assert first.grad is not None
    assert first.grad.tolist() == [[2.0, 2.0]]


def test_begun_in_inference_mode_it_goes_on_without() -> None:
    with torch.inference_mode():
        cache, vectors = filled_cache(3)
    with torch.no_grad():
        assert torch.equal(cache.append(torch.ones(3, 2)).tensor[:3], vectors)
