"""`BeamMemory`: encoder memory shared by the beams of one image, without a copy for each beam."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class BeamMemory:
    """Tensors of G memories read by R = G * copies rows; row r reads memory r // copies.

    Attributes:
        tensors: each (G, ...).
        mask: bool (G, N), True on content; None: all positions are content.
        copies: number of neighbouring rows (beams) that read the same memory.
    """

    tensors: tuple[Tensor, ...]
    mask: Tensor | None = None
    copies: int = 1

    def group(self, rows: Tensor) -> Tensor:
        """(R, ...) to (G, copies, ...)."""
        return rows.unflatten(0, (-1, self.copies))

    def select(self, rows: Tensor) -> BeamMemory:
        """The memories of the rows listed in int64 (R,), shared where neighbouring rows read the same one.

        Nothing is copied while beams are reordered within their own image.
        """
        owners = (rows // self.copies).cpu()
        memories, counts = owners.unique_consecutive(return_counts=True)
        copies = int(counts[0]) if len(counts) else 1
        if not bool((counts == copies).all()):
            memories, copies = owners, 1
        if torch.equal(memories, torch.arange(len(self.tensors[0]))):
            return BeamMemory(self.tensors, self.mask, copies)
        index = memories.to(rows.device)
        mask = None if self.mask is None else self.mask.index_select(0, index)
        return BeamMemory(tuple(tensor.index_select(0, index) for tensor in self.tensors), mask, copies)

    def first(self, count: int) -> BeamMemory:
        """The first `count` memories, as views; only where each row has its own memory."""
        mask = None if self.mask is None else self.mask[:count]
        return BeamMemory(tuple(tensor[:count] for tensor in self.tensors), mask, self.copies)
