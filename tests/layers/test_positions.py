"""Positions: the formula by hand, any grid, and nothing lost on the way to another one."""

from __future__ import annotations

import math

import pytest
import torch

from velm.layers.positions import (
    LearnedGridPositions,
    LearnedPositions,
    SineGridPositions,
    SinePositions,
    sine,
    sine_grid,
)


def test_sine_is_the_formula():
    result = sine(torch.tensor([0.0, 3.0], dtype=torch.float64), 4)
    expected = [[math.sin(p), math.sin(p / 100), math.cos(p), math.cos(p / 100)] for p in (0.0, 3.0)]
    torch.testing.assert_close(result, torch.tensor(expected, dtype=torch.float64))


def test_grid_is_row_by_row_and_every_cell_differs():
    like = torch.zeros(1, dtype=torch.float64)
    places = sine_grid((3, 5), 16, like)
    assert places.shape == (15, 16)
    row, column = places[1 * 5 + 2].chunk(2)
    torch.testing.assert_close(row, sine(torch.tensor(1.0, dtype=torch.float64), 8))
    torch.testing.assert_close(column, sine(torch.tensor(2.0, dtype=torch.float64), 8))
    distances = torch.cdist(places, places) + torch.eye(15, dtype=torch.float64)
    assert distances.min() > 0.1


def test_a_cell_has_the_same_position_on_every_grid():
    like = torch.zeros(1)
    small, large = sine_grid((2, 3), 8, like), sine_grid((4, 6), 8, like)
    torch.testing.assert_close(large.view(4, 6, 8)[:2, :3], small.view(2, 3, 8))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_dtype_is_that_of_the_features(dtype):
    x, cells = torch.zeros(2, 5, 8, dtype=dtype), (1, 5)
    assert SinePositions(8)(x).dtype == dtype
    assert SineGridPositions(8)(cells, x).dtype == dtype
    assert LearnedPositions(8, 5).to(dtype)(x).dtype == dtype
    assert LearnedGridPositions(8, 3).to(dtype)(cells, x).dtype == dtype


@pytest.mark.parametrize("module", [SinePositions(8), LearnedPositions(8, 9)], ids=["sine", "learned"])
def test_start_continues_a_text(module):
    whole = module(torch.zeros(1, 9, 8))
    torch.testing.assert_close(module(torch.zeros(1, 4, 8), start=5), whole[5:])


def test_long_texts_keep_distinct_sines_in_half_precision():
    places = SinePositions(64)(torch.zeros(1, 600, 64, dtype=torch.bfloat16)).float()
    assert torch.pdist(places).min() > 0


def test_learned_grid_is_itself_on_its_own_grid():
    positions = LearnedGridPositions(8, 3)
    places = positions((3, 3), torch.zeros(1))
    torch.testing.assert_close(places.view(3, 3, 8).permute(2, 0, 1), positions.weight[0])


@pytest.mark.parametrize("grid", [(2, 2), (4, 7), (1, 1), (9, 3)])
def test_learned_grid_takes_any_grid_and_all_of_it_learns(grid):
    positions = LearnedGridPositions(8, 5)
    places = positions(grid, torch.zeros(1))
    assert places.shape == (grid[0] * grid[1], 8)
    places.sum().backward()
    assert (positions.weight.grad != 0).all()


def test_learned_grid_keeps_what_is_the_same_everywhere():
    positions = LearnedGridPositions(4, 6)
    torch.nn.init.constant_(positions.weight, 0.3)
    torch.testing.assert_close(positions((4, 9), torch.zeros(1)), torch.full((36, 4), 0.3))


def test_errors_name_the_numbers():
    with pytest.raises(ValueError, match=r"even dim .* dim is 7"):
        SinePositions(7)
    with pytest.raises(ValueError, match=r"even dim .* dim is 7"):
        sine(torch.zeros(1), 7)
    with pytest.raises(ValueError, match=r"divisible by 4 .* dim is 6"):
        SineGridPositions(6)
    with pytest.raises(ValueError, match=r"12 tokens, .* max_length 10"):
        LearnedPositions(8, 10)(torch.zeros(1, 12, 8))
    with pytest.raises(ValueError, match="position_grid is 0"):
        LearnedGridPositions(8, 0)
