"""`packed_linears`: linear layers with their weights packed once by oneDNN, in place of at every call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from velm import _compat

__all__ = ["packed_linears"]

MAX_BYTES = 2**30
"""Memory that packed copies of weights may take."""
MIN_ROWS = {torch.bfloat16: 1, torch.float32: 4}
"""Vectors a call from which a packed layer is faster, by dtype of the product."""


@contextmanager
def packed_linears(module: nn.Module, rows: int) -> Iterator[None]:
    """Pack the weights of the `nn.Linear`s inside until the block ends; the weights must not change in it.

    For a loop that multiplies a few vectors by the same weights many times. On a CPU oneDNN reorders a weight into the
    layout of its kernel in each call, which takes longer than the product with a few vectors: 32 of width 384 times
    49,408 tokens take 7 ms of 11 in bfloat16 and 14 of 27 in float32. Packing takes as long as two to six such calls,
    and a copy of the weights, MAX_BYTES at most: of the largest first. In bfloat16 the results are the same bits; in
    float32 the sums run in another order.

    No effect with gradients, on other devices than CPUs with AVX-512, in other dtypes, and on subclasses of
    `nn.Linear` or of its parameter.

    Args:
        module: has the layers.
        rows: vectors that a call multiplies.
    """
    packed = _packable(module, rows) if not torch.is_grad_enabled() else []
    left = MAX_BYTES
    for linear in sorted(packed, key=lambda each: each.weight.numel(), reverse=True):
        left -= linear.weight.numel() * _dtype(linear.weight).itemsize
        if left < 0:
            break
        linear.forward = _packed(linear)  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        for linear in packed:
            vars(linear).pop("forward", None)


def _packable(module: nn.Module, rows: int) -> list[nn.Linear]:
    """The layers to pack; those that an outer block has packed are left to it."""
    if not _compat.packs_linear_weights():
        return []
    found = [each for each in module.modules() if type(each) is nn.Linear and "forward" not in vars(each)]
    return [each for each in found if _is_plain(each.weight) and rows >= MIN_ROWS.get(_dtype(each.weight), rows + 1)]


def _is_plain(weight: Tensor) -> bool:
    return type(weight) is nn.Parameter and weight.device.type == "cpu"


def _dtype(weight: Tensor) -> torch.dtype:
    """Of the product."""
    autocast = torch.is_autocast_enabled("cpu") and weight.dtype == torch.float32
    return torch.get_autocast_dtype("cpu") if autocast else weight.dtype


def _packed(linear: nn.Linear) -> Callable[[Tensor], Tensor]:
    """`linear.forward`, with a packed copy of the weight."""
    dtype, unpacked = _dtype(linear.weight), linear.forward
    weight = _compat.pack_linear_weight(linear.weight.detach().to(dtype))
    bias = None if linear.bias is None else linear.bias.detach().to(dtype)

    def forward(x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():  # a graph cannot hold the packed weight, and has a layout of its own
            return unpacked(x)
        return _compat.packed_linear(x.to(dtype), weight, bias)

    return forward
