"""Tiles of a matrix that is never whole, where its matches lie, and a function that carries its own gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

__all__ = ["Matches", "Tile", "Walk", "with_gradient"]


def tile_size(device: torch.device) -> tuple[int, int]:
    """Rows and columns of a tile: what one core's second cache holds; several threads want to meet less often."""
    if device.type != "cpu":
        return 4096, 4096
    return (512, 1024) if torch.get_num_threads() == 1 else (2048, 2048)


class Matches:
    """Where row_ids[i] == column_ids[j], found by sorting: O(B log B + M) for M matches, never B x B.

    Args:
        row_ids: int (b,).
        column_ids: int (B,).
        size: rows and columns of a tile.

    Attributes:
        rows: int64 (M,), ordered by tile, tiles row by row.
        columns: int64 (M,), alike.
        bounds: where in `rows` each tile's matches begin, and M.
    """

    def __init__(self, row_ids: Tensor, column_ids: Tensor, size: tuple[int, int]) -> None:
        ids, order = column_ids.sort(stable=True)
        first = torch.searchsorted(ids, row_ids)
        count = torch.searchsorted(ids, row_ids, right=True) - first
        rows = torch.arange(len(row_ids), device=ids.device).repeat_interleave(count)
        nth = torch.arange(len(rows), device=ids.device) - (count.cumsum(0) - count)[rows]
        columns = order[first[rows] + nth]
        wide = -(-len(column_ids) // size[1])
        tiles = -(-len(row_ids) // size[0]) * wide
        tile, by_tile = ((rows // size[0]) * wide + columns // size[1]).sort(stable=True)
        self.rows, self.columns = rows[by_tile], columns[by_tile]
        self.bounds: list[int] = torch.searchsorted(tile, torch.arange(tiles + 1, device=ids.device)).tolist()


class Tile:
    """A part of the matrix, with the matches inside.

    Attributes:
        rows, columns: which part it is.
        scores: float (rows, columns), scale * image @ text.T + bias; overwritten by the next tile.
        matches: which of the walk's matches lie in it.
    """

    def __init__(self, rows: slice, columns: slice, scores: Tensor, matches: slice, places: Matches) -> None:
        self.rows, self.columns, self.scores, self.matches = rows, columns, scores, matches
        self._places = places

    @property
    def at(self) -> tuple[Tensor, Tensor]:
        """Rows and columns of the matches inside the tile."""
        inside = self._places.rows[self.matches] - self.rows.start
        return inside, self._places.columns[self.matches] - self.columns.start

    def take(self, value: float) -> Tensor:
        """The scores of the matches, float (m,), which `value` replaces."""
        if self.matches.start == self.matches.stop:
            return self.scores.new_empty(0)
        at = self.at
        taken = self.scores[at]
        self.scores[at] = value
        return taken

    def put(self, values: Tensor) -> None:
        """Replace the scores of the matches by float (m,)."""
        if len(values):
            self.scores[self.at] = values


class Walk:
    """The tiles of scale * image @ text.T + bias, as often as wanted.

    Args:
        image: float (b, E), the rows.
        text: float (B, E), the columns.
        row_ids: int (b,).
        column_ids: int (B,).
        size: rows and columns of a tile; by the kind of device if left out.
    """

    def __init__(
        self, image: Tensor, text: Tensor, row_ids: Tensor, column_ids: Tensor, size: tuple[int, int] | None = None
    ) -> None:
        self.image, self.text = image, text
        self.size = tile_size(image.device) if size is None else size
        self.matches = Matches(row_ids, column_ids, self.size)
        self._buffers: dict[int, Tensor] = {}

    def __call__(self, scale: float = 1.0, bias: float = 0.0) -> Iterator[Tile]:
        height, width = self.size
        bounds = self.matches.bounds
        number = 0
        for top in range(0, len(self.image), height):
            image = self.image[top : top + height]
            for left in range(0, len(self.text), width):
                text = self.text[left : left + width]
                scores = self.buffer(0, len(image), len(text))
                if bias:
                    scores.fill_(bias)
                torch.addmm(scores, image, text.T, beta=1 if bias else 0, alpha=scale, out=scores)
                rows, columns = slice(top, top + len(image)), slice(left, left + len(text))
                yield Tile(rows, columns, scores, slice(bounds[number], bounds[number + 1]), self.matches)
                number += 1

    def buffer(self, number: int, rows: int, columns: int) -> Tensor:
        """Room for a tile, the same at every call."""
        if number not in self._buffers:
            room = min(self.size[0], len(self.image)) * min(self.size[1], len(self.text))
            self._buffers[number] = self.image.new_empty(room)
        return self._buffers[number][: rows * columns].view(rows, columns)


Computation = Callable[..., tuple[Tensor, tuple[Tensor | None, ...]]]


def with_gradient(compute: Computation, *inputs: Tensor) -> Tensor:
    """The value of `compute`, whose gradient it makes itself, as a function of `inputs` that autograd knows.

    Args:
        compute: takes the inputs, detached, and `wanted`, a tuple of bool that says which of them need a gradient;
            returns the value, float (), and a gradient or None for each of them, which nobody else holds.
        inputs: float tensors.

    Raises:
        RuntimeError: in the backward pass, if a second derivative is asked for.
    """
    if not torch.is_grad_enabled():
        inputs = tuple(tensor.detach() for tensor in inputs)
    result: Tensor = _WithGradient.apply(compute, *inputs)
    return result


class _WithGradient(torch.autograd.Function):
    """Gradients are made in the forward pass, while there is something to make them from, and handed out once.

    Handed out, they are scaled in place; a second backward pass through a retained graph makes them anew.
    """

    @staticmethod
    def forward(ctx: Any, compute: Computation, *inputs: Tensor) -> Tensor:
        ctx.compute, ctx.wanted = compute, ctx.needs_input_grad[1:]
        ctx.save_for_backward(*inputs)
        value, ctx.gradients = compute(*(tensor.detach() for tensor in inputs), wanted=ctx.wanted)
        return value

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "A loss in tiles has no second derivative, which create_graph=True asks for. For a gradient penalty "
                "write the loss with plain torch operations."
            )
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            _, gradients = ctx.compute(*(tensor.detach() for tensor in ctx.saved_tensors), wanted=ctx.wanted)
        return (None, *(g if g is None else g.mul_(scale) for g in gradients))
