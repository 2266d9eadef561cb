"""`RecordedView`: how much each position of a language model reads from some others, recorded while it runs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from velm.decoders.views import Sequence

__all__ = ["RecordedView"]


class RecordedView:
    """A `Sequence` that also sums the attention over some keys, of all heads and layers.

    A weight is multiplied by the norm of its value vector (Kobayashi et al. 2020, arXiv 2004.10102): a language model
    puts much of its attention on its first position, whose value is nearly zero (Xiao et al. 2023, arXiv 2309.17453),
    and the first position here is a corner of the image.

    Args:
        view: of a whole sequence of T positions.
        keys: the K positions that are recorded.
    """

    def __init__(self, view: Sequence, keys: slice) -> None:
        self.view, self.keys, self._effects = view, keys, torch.zeros(())

    @property
    def total(self) -> int:
        return self.view.total

    @property
    def places(self) -> Tensor:
        return self.view.places

    def mask(self, window: int | None = None) -> Tensor | None:
        return self.view.mask(window)

    def effect(self) -> Tensor:
        """float (R, T, K), the sum over heads and layers."""
        return self._effects

    def attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int | None, dropout: float
    ) -> Tensor:
        groups = query.shape[1] // key.shape[1]
        keys, values = (each.float().repeat_interleave(groups, dim=1) for each in (key, value))
        scores = query.float() @ keys.mT * scaling
        weights = scores.masked_fill(~self.view.seen(window)[:, None], -torch.inf).softmax(dim=-1)[..., self.keys]
        effects = weights * values[:, :, None, self.keys].norm(dim=-1)
        self._effects = self._effects.to(effects.device) + effects.sum(dim=1)
        return self.view.attend(module, query, key, value, scaling, window, dropout)
