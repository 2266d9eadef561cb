"""`PackedTexts`: the texts of one memory behind one prefix, so that a training step computes the prefix once.

            prefix   text 0   text 1     keys
prefix      1 1 1    0 0      0 0        causal: a triangle here
text 0      1 1 1    1 0      0 0
            1 1 1    1 1      0 0
text 1      1 1 1    0 0      1 0
            1 1 1    0 0      1 1
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from velm.decoders.shared_prefix import RowOrder
from velm.decoders.views import Sequence

__all__ = ["PackedTexts", "pack", "unpack"]


def pack(x: Tensor, order: RowOrder, memories: int) -> Tensor:
    """Texts (R, T, ...) as (B, K * T, ...), those of a memory after each other; a missing text is a copy of another."""
    return x.index_select(0, order.rows).unflatten(0, (memories, -1)).flatten(1, 2)


def unpack(x: Tensor, order: RowOrder) -> Tensor:
    """The inverse of `pack`."""
    texts = len(order.rows) // len(x)
    return x.unflatten(1, (texts, -1)).flatten(0, 1).index_select(0, order.places)


@dataclass(frozen=True)
class PackedTexts(Sequence):
    """A prefix of P positions and K texts of T positions each behind it; `total` is P + T, `content` bool (B, P + K T).

    Attributes:
        prefix: P.
        texts: K.
    """

    prefix: int = 0
    texts: int = 1

    def _content(self) -> Tensor:
        if self.content is not None:
            return self.content
        positions = self.prefix + self.texts * (self.total - self.prefix)
        return torch.ones(1, positions, dtype=torch.bool, device=self.device)

    def _places(self) -> Tensor:
        content = self._content()
        of_prefix = content[:, : self.prefix].cumsum(dim=1)
        of_texts = content[:, self.prefix :].unflatten(1, (self.texts, -1)).cumsum(dim=2)
        of_texts = of_texts + content[:, : self.prefix].sum(dim=1)[:, None, None]
        return (torch.cat([of_prefix, of_texts.flatten(1)], dim=1) - 1).clamp(min=0)

    def _causal(self) -> Tensor:
        number = torch.arange(self.prefix + self.texts * (self.total - self.prefix), device=self.device) - self.prefix
        text = number.div(self.total - self.prefix, rounding_mode="floor").clamp(min=-1)
        return ((text[:, None] == text) | (text == -1)).tril()

    def mask(self, window: int | None = None) -> Tensor:
        if window not in self._seen:
            self._seen[window] = self.seen(window)
        return self._seen[window]
