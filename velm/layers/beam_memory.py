"""A memory that many rows read without a copy each: the beams of one image share its keys."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Shared:
    """Tensors of G memories, read by R = G * copies rows; row r reads memory r // copies.

    Attributes:
        tensors: each (G, ...).
        mask: bool (G, N) of the memories; None where there is content everywhere.
        copies: how many neighbouring rows read the same memory.
    """

    tensors: tuple[Tensor, ...]
    mask: Tensor | None = None
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
        if torch.equal(memories, torch.arange(len(self.tensors[0]))):
            return Shared(self.tensors, self.mask, copies)
        index = memories.to(rows.device)
        mask = None if self.mask is None else self.mask.index_select(0, index)
        return Shared(tuple(tensor.index_select(0, index) for tensor in self.tensors), mask, copies)

    def first(self, count: int) -> Shared:
        """The first `count` memories, as views; for rows that have a memory each."""
        mask = None if self.mask is None else self.mask[:count]
        return Shared(tuple(tensor[:count] for tensor in self.tensors), mask, self.copies)
