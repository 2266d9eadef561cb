"""A memory that many rows read without a copy each: the beams of one picture share its keys."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Shared:
    """Tensors of G memories, read by R = G * copies rows; row r reads memory r // copies.

    Attributes:
        tensors: each (G, ...); None stays None.
        copies: how many neighbouring rows read the same memory.
    """

    tensors: tuple[Tensor | None, ...]
    copies: int = 1

    def group(self, rows: Tensor) -> Tensor:
        """(R, ...) to (G, copies, ...)."""
        return rows.unflatten(0, (-1, self.copies))

    def select(self, rows: Tensor) -> Shared:
        """The memories of the rows listed in int64 (R,), shared again where neighbours allow it.

        Beams that move within their own sentence copy nothing.
        """
        owners = (rows // self.copies).cpu()
        memories, counts = owners.unique_consecutive(return_counts=True)
        copies = int(counts[0]) if len(counts) else 1
        if not bool((counts == copies).all()):
            memories, copies = owners, 1
        count = next(len(tensor) for tensor in self.tensors if tensor is not None)
        if torch.equal(memories, torch.arange(count)):
            return Shared(self.tensors, copies)
        index = memories.to(rows.device)
        return Shared(tuple(None if t is None else t.index_select(0, index) for t in self.tensors), copies)

    def first(self, count: int) -> Shared:
        """The first `count` memories, as views; for rows that have a memory each."""
        return Shared(tuple(None if t is None else t[:count] for t in self.tensors), self.copies)
