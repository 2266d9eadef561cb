"""`shorten_last_block`: the last block of a language model computes the hidden states that are read, and no others.

Behind the last block nobody reads the hidden states of the image: of its positions that block needs keys and values
alone, no attention and no layers behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from velm.decoders.views import Sequence, attend

__all__ = ["shorten_last_block"]


def shorten_last_block(model: Any) -> None:
    """Let the last block of a model that `show_views` has prepared go by `Sequence.first`.

    Its output then is zero at the positions before. A model whose blocks are not found stays as it is.
    """
    blocks = [each for each in model.modules() if isinstance(each, nn.ModuleList)]
    blocks = [each for each in blocks if len(each) == model.config.num_hidden_layers]
    if len(blocks) == 1:
        block: Any = blocks[0][-1]
        block.forward = partial(_forward, type(block).forward, block)


def _forward(whole: Callable[..., Any], block: nn.Module, x: Tensor, *args: Any, **options: Any) -> Any:
    """`block.forward`, in two calls: keys and values of the first positions, then everything of the others."""
    view = options.get("view")
    if not isinstance(view, Sequence) or not view.first:
        return whole(block, x, *args, **options)
    before = _KeysAlone()

    def call(positions: slice, seen: _KeysAlone | _Behind) -> Any:
        own, given = (_cut(each, x.shape[1], positions) for each in (args, {**options, "view": seen}))
        return whole(block, x[:, positions], *own, **given)

    with suppress(_KeysAreRead):
        call(slice(0, view.first), before)
    output = call(slice(view.first, None), _Behind(view, before))
    if isinstance(output, tuple):
        return F.pad(output[0], (0, 0, view.first, 0)), *output[1:]
    return F.pad(output, (0, 0, view.first, 0))


def _cut(given: Any, length: int, positions: slice) -> Any:
    """Those positions of every tensor (B, length, ...) inside."""
    if isinstance(given, Tensor):
        return given[:, positions] if given.ndim > 1 and given.shape[1] == length else given
    if isinstance(given, dict):
        return {name: _cut(each, length, positions) for name, each in given.items()}
    return tuple(_cut(each, length, positions) for each in given) if isinstance(given, tuple) else given


class _KeysAreRead(Exception):
    """Leaves a block at its attention."""


class _KeysAlone:
    """A view that keeps keys and values, and ends the block there."""

    key: Tensor
    value: Tensor

    def attend(self, module: Any, query: Tensor, key: Tensor, value: Tensor, *options: Any) -> Tensor:
        self.key, self.value = key, value
        raise _KeysAreRead


class _Behind:
    """A view of the positions of a sequence from its `first` on, whose keys stand behind those that `before` keeps."""

    def __init__(self, view: Sequence, before: _KeysAlone) -> None:
        self.view, self.before = view, before

    def attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int | None, dropout: float
    ) -> Tensor:
        key, value = torch.cat([self.before.key, key], dim=2), torch.cat([self.before.value, value], dim=2)
        return attend(module, query, key, value, self.view.seen_by_last(window), scaling, dropout)
