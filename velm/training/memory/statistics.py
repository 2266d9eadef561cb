"""Batch norm where a forward pass is computed twice: it counts the batch once."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["first_pass_only"]


def first_pass_only(module: nn.Module) -> tuple[AbstractContextManager, AbstractContextManager]:
    """Contexts of the first and the second pass, as `torch.utils.checkpoint` takes them."""
    return contextlib.nullcontext(), _StatisticsKept(module)


class _StatisticsKept(AbstractContextManager[None]):
    """Entered as often as the graph is gone through backwards."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __enter__(self) -> None:
        norms = [part for part in self.module.modules() if isinstance(part, _BatchNorm) and part.track_running_stats]
        self.before = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
        for norm in norms:
            norm.momentum, norm.num_batches_tracked = 0.0, None

    def __exit__(self, *details: object) -> None:
        for norm, momentum, count in self.before:
            norm.momentum, norm.num_batches_tracked = momentum, count
