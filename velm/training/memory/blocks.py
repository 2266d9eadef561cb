"""The repeated blocks of a tower, whoever wrote it: what is checkpointed and sharded one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from velm.errors import ConfigError
from velm.training.memory.statistics import first_pass_only

__all__ = ["blocks_of", "checkpoint_blocks"]


def blocks_of(module: nn.Module) -> Iterator[nn.Module]:
    """The members of every outermost list of a module that repeats a class.

    ResNet's bottlenecks, MobileNet's inverted residuals, the blocks of Transformers of VELM, timm and transformers.
    """
    children = list(module.children())
    if isinstance(module, nn.ModuleList | nn.Sequential) and _repeats(children):
        yield from (child for child in children if _weighs(child))
        return
    for child in children:
        yield from blocks_of(child)


def _repeats(children: list[nn.Module]) -> bool:
    """Whether two of them are of one composite class: linear layers in a row are no blocks."""
    kinds = [type(child) for child in children if _weighs(child) and any(child.children())]
    return len(kinds) > len(set(kinds))


def _weighs(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())


def checkpoint_blocks(parts: dict[str, nn.Module]) -> int:
    """Keep only the inputs of the blocks in training; what is inside is computed again on the way back.

    The tree of modules and the names of the weights stay as they are.

    Args:
        parts: towers by name; one that is made of one piece (an RNN) stays as it is.

    Returns:
        how many blocks there are.

    Raises:
        ConfigError: no part has any.
    """
    blocks = [block for part in parts.values() for block in blocks_of(part)]
    if not blocks:
        raise ConfigError(
            f"model.checkpoint_blocks is set, but {', '.join(parts)} have no repeated blocks: set it to false, or keep "
            "fewer activations by model.micro_batch_size."
        )
    for block in blocks:
        block.forward = partial(_again, block, block.forward)
    return len(blocks)


def _again(block: nn.Module, forward: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
    given = (*inputs, *options.values(), *block.parameters())
    if not torch.is_grad_enabled() or not any(isinstance(x, Tensor) and x.requires_grad for x in given):
        return forward(*inputs, **options)
    contexts = partial(first_pass_only, block)
    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=contexts, **options)
