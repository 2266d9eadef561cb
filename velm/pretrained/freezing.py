"""Frozen modules: eval mode, and which parameters an output depends on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn


def eval_frozen(module: nn.Module) -> None:
    """Put every submodule whose parameters are all frozen into eval mode: no dropout, fixed batch statistics."""
    parameters = list(module.parameters())
    if parameters and not any(parameter.requires_grad for parameter in parameters):
        module.eval()
        return
    for child in module.children():
        eval_frozen(child)


_Module = TypeVar("_Module", bound="FrozenPartsInEval")


class FrozenPartsInEval(nn.Module):
    """Keeps the frozen parts of `self.model` in eval mode during training.

    Attributes:
        library_parts: children whose weights are the library's; the others are VELM's own, see
            `velm.pretrained.adapters`.
    """

    model: Any
    library_parts: tuple[str, ...] = ("model",)

    def train(self: _Module, mode: bool = True) -> _Module:
        super().train(mode)
        eval_frozen(self.model)
        return self


class _Call(nn.Module):
    """A module whose forward is `function`."""

    def __init__(self, module: nn.Module, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.module, self.function = module, function

    def forward(self, images: Tensor) -> Any:
        return self.function(images)


def trace_shapes(module: nn.Module, function: Callable[[Tensor], Any], size: tuple[int, ...]) -> tuple[Any, set[str]]:
    """Run `function` on meta tensors: output shapes and used parameters, without computation.

    Args:
        function: takes a float tensor of `size`.

    Returns:
        The result, on the meta device, and the names of the parameters that it depends on. Unused parameters (a
        classifier's norm, an unused pooler) are frozen by the caller: DDP raises on parameters without a gradient.
    """
    was_training = module.training
    call = _Call(module, function).eval()
    meta = {name: p.detach().to("meta").requires_grad_() for name, p in call.named_parameters()}
    buffers = {name: b.to("meta") for name, b in call.named_buffers()}
    with torch.enable_grad(), torch.inference_mode(False):
        result = torch.func.functional_call(call, {**meta, **buffers}, (torch.empty(size, device="meta"),))
        parts = result if isinstance(result, (tuple, list)) else [result]
        scalars = [part.sum() for part in parts if isinstance(part, Tensor)]
    module.train(was_training)
    gradients = torch.autograd.grad(scalars, list(meta.values()), allow_unused=True)
    used = {name.removeprefix("module.") for name, g in zip(meta, gradients, strict=True) if g is not None}
    return result, used
