"""Depthwise convolutions that learn in bfloat16 on a CPU by oneDNN's fast kernels."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

__all__ = ["DepthwiseConv2d", "use_fast_gradients"]

_SIDE = 3  # of the kernels whose weight gradient is fast


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution; the same numbers, other kernels for its gradients in bfloat16 on a CPU.

    There oneDNN (torch 2.14) has no fast kernel for the gradient of the input where the stride is above 1, nor for that
    of a weight of more than 3 x 3. The former is computed in float32, the latter as that of overlapping weights of
    3 x 3. Measured by `python benchmarks/image_towers.py --train`.
    """

    def forward(self, input: Tensor) -> Tensor:
        autocast = torch.is_autocast_enabled("cpu")
        dtype = torch.get_autocast_dtype("cpu") if autocast else input.dtype
        learning = torch.is_grad_enabled() and (input.requires_grad or self.weight.requires_grad)
        plain = torch.compiler.is_compiling() or input.device.type != "cpu" or dtype != torch.bfloat16
        if plain or not learning:
            return super().forward(input)
        weight, bias = self.weight.to(dtype), None if self.bias is None else self.bias.to(dtype)
        output: Tensor = _Depthwise.apply(input.to(dtype), weight, self.stride, self.padding)
        return output if bias is None else output + bias[:, None, None]


def use_fast_gradients(model: nn.Module) -> None:
    """Make every depthwise convolution of `model` whose gradients this file speeds up a `DepthwiseConv2d`."""
    for module in model.modules():
        if type(module) is nn.Conv2d and _slow_in_torch(module):
            module.__class__ = DepthwiseConv2d


def _slow_in_torch(conv: nn.Conv2d) -> bool:
    height, width = conv.kernel_size
    depthwise = conv.groups == conv.in_channels == conv.out_channels and conv.groups > 1
    plain = conv.padding_mode == "zeros" and conv.dilation == (1, 1) and not isinstance(conv.padding, str)
    odd = height == width and height % 2 == 1 and height >= _SIDE
    return depthwise and plain and odd and (height > _SIDE or max(conv.stride) > 1)


class _Depthwise(torch.autograd.Function):
    """conv2d of (B, C, H, W) and (C, 1, K, K), with K odd."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(x, weight, None, stride, padding, groups=x.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        of_x = _input_gradient(grad, x, weight, ctx.stride, ctx.padding) if ctx.needs_input_grad[0] else None
        of_weight = _weight_gradient(grad, x, weight, ctx.stride, ctx.padding) if ctx.needs_input_grad[1] else None
        return of_x, of_weight, None, None


def _input_gradient(
    grad: Tensor, x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    if max(stride) == 1:
        return _gradients(grad, x, weight, stride, padding, (True, False))[0]
    shape_only = torch.empty_like(x, dtype=torch.float32)  # the gradient of the input does not read the input
    return _gradients(grad.float(), shape_only, weight.float(), stride, padding, (True, False))[0].to(x.dtype)


def _weight_gradient(
    grad: Tensor, x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    side = weight.shape[-1]
    if side == _SIDE:
        return _gradients(grad, x, weight, stride, padding, (False, True))[1]
    padded = F.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    height, width = (step * (count - 1) + _SIDE for step, count in zip(stride, grad.shape[2:], strict=True))
    part, whole = weight[..., :_SIDE, :_SIDE].contiguous(), torch.empty_like(weight)
    for top in range(0, side - 1, _SIDE - 1):
        for left in range(0, side - 1, _SIDE - 1):
            window = padded[:, :, top : top + height, left : left + width]
            window = window.contiguous(memory_format=torch.channels_last)
            gradient = _gradients(grad, window, part, stride, (0, 0), (False, True))[1]
            whole[:, :, top : top + _SIDE, left : left + _SIDE] = gradient
    return whole


def _gradients(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
    wanted: tuple[bool, bool],
) -> tuple[Tensor, Tensor]:
    """The gradients of input and weight; of the one that is not wanted, None."""
    found = torch.ops.aten.convolution_backward(
        grad, x, weight, None, stride, padding, (1, 1), False, (0, 0), x.shape[1], (*wanted, False)
    )
    return found[0], found[1]
