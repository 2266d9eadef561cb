"""transformers' caches of keys and values, which its models change in place, as values."""

from __future__ import annotations

import copy
import inspect
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["appending", "cache_option", "fork"]

ROOM = 32  # positions that are made room for at least


def fork(cache: Any, rows: Tensor | None = None) -> Any:
    """An independent copy of a DynamicCache, with `rows` of it, int64 (R,); without, tensors are shared."""
    copied = copy.copy(cache)
    copied.layers = [copy.copy(layer) for layer in cache.layers]
    if rows is not None:
        copied.reorder_cache(rows)
    return copied


def cache_option(module: nn.Module) -> str:
    """The argument of a module that takes a cache: `cache` since transformers 5.20, `past_key_values` before."""
    return "cache" if "cache" in inspect.signature(module.forward).parameters else "past_key_values"


def appending(dynamic: Any) -> Any:
    """The DynamicCache `dynamic`, whose forks append to common memory instead of copying everything for each position.

    A fork sees the positions that it had; the place behind them is taken by the first fork that goes on from there, and
    a second one moves to memory of its own. Where autograd records, everything is copied.
    """
    dynamic.layers = [_appending_layer()(layer.keys, layer.values) for layer in dynamic.layers]
    return dynamic


class _Room:
    """Memory float (R, H, capacity, d) of keys and values, of which `filled` positions are taken."""

    def __init__(self, keys: Tensor, values: Tensor, length: int) -> None:
        capacity = length + max(ROOM, length // 4)
        self.keys, self.values = (x.new_empty(*x.shape[:2], capacity, x.shape[3]) for x in (keys, values))
        self.keys[:, :, : keys.shape[2]], self.values[:, :, : keys.shape[2]] = keys, values
        self.filled = keys.shape[2]

    def takes(self, start: int, end: int) -> bool:
        same = self.keys.is_inference() == torch.is_inference_mode_enabled()
        return self.filled == start and end <= self.keys.shape[2] and same


@cache
def _appending_layer() -> Any:
    from transformers.cache_utils import DynamicLayer

    base: Any = DynamicLayer

    class AppendingLayer(base):
        """A layer whose keys and values are the beginning of a `_Room`."""

        def __init__(self, keys: Tensor, values: Tensor) -> None:
            super().__init__()
            self.lazy_initialization(keys, values)
            self.keys, self.values = keys, values
            self.room: _Room | None = None

        def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
            if torch.is_grad_enabled():
                self.room = None
                grown: tuple[Tensor, Tensor] = super().update(key_states, value_states, *args, **kwargs)
                return grown
            start = self.keys.shape[2]
            end = start + key_states.shape[2]
            room = self.room
            if room is None or not room.takes(start, end):
                room = self.room = _Room(self.keys, self.values, end)
            room.filled = end
            room.keys[:, :, start:end], room.values[:, :, start:end] = key_states, value_states
            self.keys, self.values = room.keys[:, :, :end], room.values[:, :, :end]
            return self.keys, self.values

        def reorder_cache(self, beam_idx: Tensor) -> None:
            super().reorder_cache(beam_idx)
            self.room = None

    return AppendingLayer
