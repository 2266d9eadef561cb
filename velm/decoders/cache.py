"""transformers' caches of keys and values, which its models change in place, as values."""

from __future__ import annotations

import copy
import inspect
from typing import Any

from torch import Tensor, nn

__all__ = ["cache_option", "fork"]


def fork(cache: Any, rows: Tensor | None = None) -> Any:
    """An independent copy of a DynamicCache, with `rows` of it, int64 (R,); without, tensors are shared."""
    cache = copy.copy(cache)
    cache.layers = [copy.copy(layer) for layer in cache.layers]
    if rows is not None:
        cache.reorder_cache(rows)
    return cache


def cache_option(module: nn.Module) -> str:
    """The argument of a module that takes a cache: `cache` since transformers 5.20, `past_key_values` before."""
    return "cache" if "cache" in inspect.signature(module.forward).parameters else "past_key_values"
