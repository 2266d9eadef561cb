"""A sequence that grows in place is what it would be if it were copied each time."""

from __future__ import annotations

import pytest
import torch

from velm.layers.kv_cache import ROOM, Growing


def grown(steps: int, seed: int = 0) -> tuple[Growing, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(steps, 3, 2, generator=generator)
    growing = Growing.of(vectors[0])
    for vector in vectors[1:]:
        growing = growing.append(vector)
    return growing, vectors


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("steps", [1, 2, ROOM, ROOM + 1, 2 * ROOM + 2])
def test_it_holds_what_was_appended(steps, grad) -> None:
    with torch.set_grad_enabled(grad):
        growing, vectors = grown(steps)
        rows = torch.tensor([2, 0, 2, 1])
        chosen = growing.select(rows).append(torch.ones(4, 2))
    assert torch.equal(growing.tensor, vectors)
    assert torch.equal(chosen.tensor[:-1], vectors[:, rows])
    assert torch.equal(chosen.tensor[-1], torch.ones(4, 2))


@torch.no_grad()
def test_it_grows_in_place_and_only_once() -> None:
    growing, vectors = grown(5)
    one = growing.append(torch.ones(3, 2))
    two = growing.append(torch.zeros(3, 2))
    assert one.tensor.data_ptr() == growing.tensor.data_ptr() != two.tensor.data_ptr()
    assert torch.equal(one.tensor, torch.cat([vectors, torch.ones(1, 3, 2)]))
    assert torch.equal(two.tensor, torch.cat([vectors, torch.zeros(1, 3, 2)]))
    assert torch.equal(growing.tensor, vectors)


def test_gradients_pass() -> None:
    first, second = torch.ones(1, 2, requires_grad=True), torch.ones(1, 2, requires_grad=True)
    Growing.of(first).append(second).select(torch.tensor([0, 0])).tensor.sum().backward()
    assert first.grad is not None
    assert first.grad.tolist() == [[2.0, 2.0]]


def test_begun_in_inference_mode_it_goes_on_without() -> None:
    with torch.inference_mode():
        growing, vectors = grown(3)
    with torch.no_grad():
        assert torch.equal(growing.append(torch.ones(3, 2)).tensor[:3], vectors)
