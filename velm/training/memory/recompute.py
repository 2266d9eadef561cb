"""Activation checkpointing of a tower's repeated blocks, which are also FSDP2's units of sharding."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from velm import _compat
from velm.errors import ConfigError

__all__ = ["blocks_of", "checkpoint_blocks", "recompute_contexts"]


def blocks_of(module: nn.Module) -> Iterator[nn.Module]:
    """The members of every outermost list of a module that repeats a class.

    ResNet's bottlenecks, MobileNet's inverted residuals, the blocks of Transformers of VELM, timm and transformers.
    """
    children = list(module.children())
    if isinstance(module, nn.ModuleList | nn.Sequential) and _repeats(children):
        yield from (child for child in children if _has_parameters(child))
        return
    for child in children:
        yield from blocks_of(child)


def _repeats(children: list[nn.Module]) -> bool:
    """Whether two children share a composite class: linear layers in a row are no blocks."""
    classes = [type(child) for child in children if _has_parameters(child) and any(child.children())]
    return len(classes) > len(set(classes))


def _has_parameters(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())


def checkpoint_blocks(towers: dict[str, nn.Module]) -> int:
    """Keep only the inputs of the blocks in training; the backward pass recomputes the rest.

    The tree of modules and the names of the weights stay as they are.

    Args:
        towers: by name; one without blocks (an RNN) is left unchanged.

    Returns:
        the number of blocks.

    Raises:
        ConfigError: no tower has blocks.
    """
    blocks = [block for tower in towers.values() for block in blocks_of(tower)]
    if not blocks:
        raise ConfigError(
            f"model.checkpoint_blocks is set, but {', '.join(towers)} have no repeated blocks: set it to false, or "
            "keep fewer activations by model.micro_batch_size."
        )
    for block in blocks:
        block.forward = partial(_checkpointed, block, block.forward)
    return len(blocks)


def _checkpointed(block: nn.Module, forward: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
    tensors = (*inputs, *options.values(), *block.parameters())
    if not torch.is_grad_enabled() or not any(isinstance(x, Tensor) and x.requires_grad for x in tensors):
        return forward(*inputs, **options)
    contexts = partial(recompute_contexts, block)
    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=contexts, **options)


def recompute_contexts(module: nn.Module) -> tuple[AbstractContextManager, AbstractContextManager]:
    """Contexts of the first and of the recomputed forward pass, for `torch.utils.checkpoint`'s `context_fn`.

    Batch norm counts a batch in its running statistics once, in the first pass.
    """
    return contextlib.nullcontext(), _FrozenStatistics(module)


class _FrozenStatistics(AbstractContextManager[None]):
    """Batch norms do not update their running statistics inside; entered once per backward pass."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __enter__(self) -> None:
        norms: list[Any] = [part for part in self.module.modules() if _compat.is_batch_norm(part)]
        self.before = [(n, n.momentum, n.num_batches_tracked) for n in norms if n.track_running_stats]
        for norm, _, _ in self.before:
            norm.momentum, norm.num_batches_tracked = 0.0, None

    def __exit__(self, *details: object) -> None:
        for norm, momentum, count in self.before:
            norm.momentum, norm.num_batches_tracked = momentum, count
