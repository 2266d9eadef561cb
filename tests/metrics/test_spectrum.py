"""The effective rank counts directions: one for a point, all for an orthonormal set, whatever the scale."""

from __future__ import annotations

import math

import pytest
import torch

from velm.metrics import effective_rank


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5), (1, 3)])
def test_orthogonal_rows_use_every_direction(shape: tuple[int, int]) -> None:
    assert effective_rank(torch.eye(*shape)) == pytest.approx(min(shape))


def test_equal_rows_use_one() -> None:
    assert effective_rank(torch.randn(7, generator=torch.Generator().manual_seed(0)).expand(9, 7)) == pytest.approx(1)


def test_two_singular_values_by_hand() -> None:
    """Of diag(3, 1) the shares are 3/4 and 1/4, whose entropy is ln 4 - (3/4) ln 3."""
    assert effective_rank(torch.diag(torch.tensor([3.0, 1.0]))) == pytest.approx(
        math.exp(math.log(4) - 0.75 * math.log(3))
    )


def test_scale_rotation_and_order_change_nothing() -> None:
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(12, 5, generator=generator, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(5, 5, generator=generator, dtype=torch.float64)).Q
    expected = effective_rank(rows)
    assert effective_rank(-7 * rows.flip(0) @ turn) == pytest.approx(expected, rel=1e-6)
    assert 1 < expected < 5
