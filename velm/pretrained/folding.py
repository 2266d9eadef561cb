"""Folds batch norm into the preceding convolution: the same function, fewer passes over memory.

In eval mode BN(W x) = (g / s) W x + (b - m g / s), s = sqrt(var + eps): one convolution with a bias. The folded
layers are a copy, so the module's parameters and state dict are unchanged.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from velm import _compat

# Classes whose children run in the order they are registered.
_IN_ORDER = ("Sequential", "BasicBlock", "Bottleneck", "Conv2dNormActivation", "BasicConv2d")


def fold_batch_norm(layers: Sequence[nn.Module]) -> nn.Sequential:
    """A copy of `layers` as a sequence in eval mode, with batch norms folded where possible."""
    with torch.inference_mode(False), torch.no_grad():  # may be created in validation and used in training
        folded = copy.deepcopy(nn.Sequential(*layers)).eval().requires_grad_(False)
        for module in list(folded.modules()):
            if isinstance(module, nn.Sequential) or type(module).__name__ in _IN_ORDER:
                _fold_children(module)
        return folded.to(memory_format=torch.channels_last)


def _fold_children(module: nn.Module) -> None:
    children = list(module.named_children())
    for (name, convolution), (next_name, norm) in pairwise(children):
        if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) and norm.track_running_stats:
            module._modules[name] = fuse_conv_bn_eval(convolution, norm)
            module._modules[next_name] = nn.Identity()


class FoldedCopy:
    """A cached folded copy of layers, rebuilt when their weights, device or dtype change."""

    def __init__(self) -> None:
        self._signature: Any = None
        self._folded: nn.Sequential | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> FoldedCopy:
        return FoldedCopy()

    def __reduce__(self) -> tuple[type[FoldedCopy], tuple[()]]:
        return FoldedCopy, ()

    def clear(self) -> None:
        """Free the copy."""
        self._signature = self._folded = None

    def of(self, layers: Sequence[nn.Module]) -> nn.Sequential:
        """The folded copy of the current `layers`."""
        tensors: list[Tensor] = [t for layer in layers for t in (*layer.parameters(), *layer.buffers())]
        signature = tuple((t.data_ptr(), 0 if t.is_inference() else t._version, t.device, t.dtype) for t in tensors)
        if self._folded is None or signature != self._signature:
            self._folded, self._signature = fold_batch_norm(layers), signature
        return self._folded


def may_fold(layers: Sequence[nn.Module]) -> bool:
    """Whether to fold: there is batch norm, all in eval mode, and nothing is trained, compiled or traced."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    if any(_compat.is_fake(p) for layer in layers for p in layer.parameters()):
        return False  # torch cannot deepcopy fake tensors: it corrupts memory
    if torch.is_grad_enabled() and any(p.requires_grad for layer in layers for p in layer.parameters()):
        return False
    norms = [m for layer in layers for m in layer.modules() if isinstance(m, nn.BatchNorm2d)]
    return bool(norms) and not any(norm.training for norm in norms)
