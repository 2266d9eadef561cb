"""Hard negatives of a batch: K captions per sample that are false of its image, and their embeddings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

__all__ = ["HardNegatives", "NegativeEmbeddings"]


@dataclass
class HardNegatives:
    """K captions per sample that are false of its image.

        caption        a small red circle left of a large blue square
        [b, 0]  valid  a large blue square left of a small red circle
        [b, 1]         the caption itself, where no further negative can be made of it

    Attributes:
        tokens: int64 (B, K, T), bos ... eos, padded.
        mask: bool (B, K, T), True on bos ... eos; every row has content.
        valid: bool (B, K), False where there is no negative: no loss reads the row.
    """

    tokens: Tensor
    mask: Tensor
    valid: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> HardNegatives:
        """A copy with `function` applied to every tensor."""
        return HardNegatives(function(self.tokens), function(self.mask), function(self.valid))

    def trim(self) -> HardNegatives:
        """Without the columns that hold only padding."""
        longest = int(self.mask.sum(dim=2).max()) if self.mask.numel() else 0
        return HardNegatives(self.tokens[:, :, :longest], self.mask[:, :, :longest], self.valid)


@dataclass
class NegativeEmbeddings:
    """The joint embeddings of a batch's hard negatives.

    Attributes:
        text: float (B, K, E), L2-normalised.
        valid: bool (B, K), as of `HardNegatives`.
    """

    text: Tensor
    valid: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> NegativeEmbeddings:
        """A copy with `function` applied to both tensors."""
        return NegativeEmbeddings(function(self.text), function(self.valid))
