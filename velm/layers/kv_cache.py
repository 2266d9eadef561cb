"""`KVCache`: the keys and values of the tokens decoded so far."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

INITIAL_CAPACITY = 16
"""Tokens that fit in the first buffer; a full buffer is replaced by one of twice the size."""


@dataclass
class _Buffer:
    """float (capacity, R, D), of which the first `filled` tokens are written."""

    tensor: Tensor
    filled: int


@dataclass(frozen=True)
class KVCache:
    """An append-only sequence of vectors, float (t, R, D), for t tokens of R rows.

    `append` and `select` return a new cache and leave this one unchanged. Appending writes behind the end of a buffer
    that both caches share; a second append to the same cache (a branch) copies:

        a b c . .   first = cache.append(d)    a b c d .   same buffer
                    second = cache.append(e)   a b c e .   copy

    With gradients enabled every append copies, so that gradients flow.
    """

    buffer: _Buffer
    length: int

    @classmethod
    def of(cls, first: Tensor) -> KVCache:
        """A cache of one token, float (R, D)."""
        return cls(_Buffer(first[None], 1), 1)

    @classmethod
    def whole(cls, tensor: Tensor) -> KVCache:
        """A cache of all tokens of float (t, R, D), without room for more."""
        return cls(_Buffer(tensor, tensor.shape[0]), tensor.shape[0])

    @property
    def tensor(self) -> Tensor:
        """float (t, R, D), a view."""
        return self.buffer.tensor[: self.length]

    def append(self, new: Tensor) -> KVCache:
        """The cache with one more token, float (R, D)."""
        if torch.is_grad_enabled():
            return KVCache(_Buffer(torch.cat([self.tensor, new[None]]), self.length + 1), self.length + 1)
        buffer = self.buffer
        read_only = buffer.tensor.is_inference() and not torch.is_inference_mode_enabled()
        if buffer.filled != self.length or self.length == len(buffer.tensor) or read_only:
            buffer = self._new_buffer(new.shape[0], max(INITIAL_CAPACITY, 2 * self.length))
            buffer.tensor[: self.length] = self.tensor
        buffer.tensor[self.length] = new
        buffer.filled += 1
        return KVCache(buffer, self.length + 1)

    def select(self, rows: Tensor) -> KVCache:
        """The cache of the rows listed in int64 (R',), with the same capacity."""
        if torch.is_grad_enabled():
            return KVCache(_Buffer(self.tensor.index_select(1, rows), self.length), self.length)
        buffer = self._new_buffer(len(rows), len(self.buffer.tensor))
        torch.index_select(self.tensor, 1, rows, out=buffer.tensor[: self.length])
        return KVCache(buffer, self.length)

    def _new_buffer(self, rows: int, capacity: int) -> _Buffer:
        return _Buffer(self.buffer.tensor.new_empty(capacity, rows, self.buffer.tensor.shape[2]), self.length)
