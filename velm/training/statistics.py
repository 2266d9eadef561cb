"""Batch norm where a forward pass is computed twice: it counts the batch once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["first_pass_only"]


def first_pass_only(module: nn.Module) -> tuple[AbstractContextManager, AbstractContextManager]:
    """Contexts of the first and the second pass, as `torch.utils.checkpoint` takes them."""
    return contextlib.nullcontext(), _statistics_kept(module)


@contextlib.contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm) and part.track_running_stats]
    before = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    try:
        for norm in norms:
            norm.momentum, norm.num_batches_tracked = 0.0, None
        yield
    finally:
        for norm, momentum, count in before:
            norm.momentum, norm.num_batches_tracked = momentum, count
