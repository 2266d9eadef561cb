"""A sequence that grows at its end without being copied each time: keys and values of the words so far."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Growing"]

ROOM = 16
"""Places that the first room has; a room that is full is followed by one twice as large."""


@dataclass
class _Room:
    """float (capacity, R, D), of which the first `filled` places are taken."""

    tensor: Tensor
    filled: int


@dataclass(frozen=True)
class Growing:
    """A vector at each of t places for R rows: float (t, R, D).

    `append` and `select` leave it as it is. What is appended goes behind the end of the room that the two then share;
    whoever comes second copies:

        a b c . .   one.append(d)     a b c d .   the same room
                    one.append(e)     a b c e .   another

    With gradients on, both copy, so that gradients pass.
    """

    room: _Room
    length: int

    @classmethod
    def of(cls, first: Tensor) -> Growing:
        """With one place, float (R, D)."""
        return cls(_Room(first[None], 1), 1)

    @property
    def tensor(self) -> Tensor:
        """float (t, R, D), a view."""
        return self.room.tensor[: self.length]

    def append(self, new: Tensor) -> Growing:
        """With one more place, float (R, D)."""
        if torch.is_grad_enabled():
            return Growing(_Room(torch.cat([self.tensor, new[None]]), self.length + 1), self.length + 1)
        room = self.room
        foreign = room.tensor.is_inference() and not torch.is_inference_mode_enabled()  # may not be written into
        if room.filled != self.length or self.length == len(room.tensor) or foreign:
            room = self._empty(new.shape[0], max(ROOM, 2 * self.length))
            room.tensor[: self.length] = self.tensor
        room.tensor[self.length] = new
        room.filled += 1
        return Growing(room, self.length + 1)

    def select(self, rows: Tensor) -> Growing:
        """The rows listed in int64 (R',), with as much room."""
        if torch.is_grad_enabled():
            return Growing(_Room(self.tensor.index_select(1, rows), self.length), self.length)
        room = self._empty(len(rows), len(self.room.tensor))
        torch.index_select(self.tensor, 1, rows, out=room.tensor[: self.length])
        return Growing(room, self.length)

    def _empty(self, rows: int, capacity: int) -> _Room:
        """Room for as many places as there are, and more."""
        return _Room(self.room.tensor.new_empty(capacity, rows, self.room.tensor.shape[2]), self.length)
