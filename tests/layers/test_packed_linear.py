"""Packed linear layers multiply as they did, and are plain layers again after the block."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from velm import _compat
from velm.layers import packed_linear
from velm.layers.packed_linear import packed_linears

needs_packing = pytest.mark.skipif(not _compat.packs_linear_weights(), reason="this CPU packs no weights")


@pytest.fixture
def layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 40), nn.Linear(40, 7, bias=False))


def is_packed(linear: nn.Module) -> bool:
    return "forward" in vars(linear)


@needs_packing
@pytest.mark.parametrize("shape", [(24,), (5, 24), (2, 3, 24)])
def test_in_bfloat16_the_bits_are_the_same(layers: nn.Sequential, shape: tuple[int, ...]) -> None:
    layers, x = layers.bfloat16(), torch.randn(shape, dtype=torch.bfloat16)
    with torch.no_grad():
        expected = layers(x)
        with packed_linears(layers, 5):
            assert all(is_packed(each) for each in layers)
            assert torch.equal(layers(x), expected)
        assert torch.equal(layers(x), expected)
    assert not any(is_packed(each) for each in layers)


@needs_packing
def test_in_float32_the_sums_run_in_another_order(layers: nn.Sequential) -> None:
    x = torch.randn(5, 24)
    with torch.no_grad(), packed_linears(layers, 5):
        assert is_packed(layers[0])
        packed = layers(x)
    torch.testing.assert_close(packed, layers(x))


@needs_packing
def test_under_autocast_the_product_is_that_of_autocast(layers: nn.Sequential) -> None:
    x = torch.randn(5, 24)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = layers(x)
        with packed_linears(layers, 1):
            assert is_packed(layers[0])
            assert torch.equal(layers(x), expected)


@needs_packing
def test_weights_are_packed_anew_in_each_block(layers: nn.Sequential) -> None:
    x = torch.randn(5, 24)
    with torch.no_grad():
        with packed_linears(layers, 5):
            layers(x)
        layers[0].weight.data.mul_(2)
        with packed_linears(layers, 5):
            torch.testing.assert_close(layers(x), layers[1](layers[0](x)))
        torch.testing.assert_close(layers[0](x), x @ layers[0].weight.T + layers[0].bias)


@needs_packing
def test_an_inner_block_leaves_the_outer_ones_layers_packed(layers: nn.Sequential) -> None:
    with torch.no_grad(), packed_linears(layers, 5):
        with packed_linears(layers, 5):
            pass
        assert is_packed(layers[0])


@needs_packing
def test_the_largest_weights_come_first_within_the_memory(
    layers: nn.Sequential, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_linear, "MAX_BYTES", 24 * 40 * 4)
    with torch.no_grad(), packed_linears(layers, 5):
        assert [is_packed(each) for each in layers] == [True, False]


def test_an_error_in_the_block_restores_the_layers(layers: nn.Sequential) -> None:
    with pytest.raises(KeyError), torch.no_grad(), packed_linears(layers, 5):
        raise KeyError
    assert not any(is_packed(each) for each in layers)


class OwnLinear(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) + 1


@pytest.mark.parametrize(
    ("module", "rows"),
    [(nn.Linear(4, 4).double(), 8), (nn.Linear(4, 4), 1), (OwnLinear(4, 4), 8), (nn.Linear(4, 4, device="meta"), 8)],
    ids=["float64", "one row of float32", "a subclass", "another device"],
)
def test_other_layers_stay_as_they_are(module: nn.Linear, rows: int) -> None:
    with torch.no_grad(), packed_linears(module, rows):
        assert not is_packed(module)


def test_with_gradients_nothing_is_packed(layers: nn.Sequential) -> None:
    with packed_linears(layers, 5):
        assert not any(is_packed(each) for each in layers)
        layers(torch.randn(5, 24)).sum().backward()
    assert layers[0].weight.grad is not None
