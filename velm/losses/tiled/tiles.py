"""A score matrix computed in tiles, the positions of its matches, and a function that computes its own gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

__all__ = ["Matches", "Tile", "TiledScores", "log_sums", "with_gradient"]


def tile_size(device: torch.device) -> tuple[int, int]:
    """Rows and columns of a tile: one core's L2 cache; with several threads larger, for fewer synchronisations."""
    if device.type != "cpu":
        return 4096, 4096
    return (512, 1024) if torch.get_num_threads() == 1 else (2048, 2048)


class Matches:
    """Pairs (i, j) with row_ids[i] == column_ids[j], by sorting: O(B log B + M) for M matches, never B x B.

    Args:
        row_ids: int (b,).
        column_ids: int (B,).
        size: rows and columns of a tile.

    Attributes:
        rows: int64 (M,), ordered by tile, tiles row by row.
        columns: int64 (M,), in the same order.
        bounds: index of each tile's first match, and M.
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
    """A block of the score matrix and its matches.

    Attributes:
        rows, columns: its slices of the matrix.
        scores: float (rows, columns), scale * image @ text.T + bias; overwritten by the next tile.
        matches: slice of `Matches` that lies in it.
    """

    def __init__(self, rows: slice, columns: slice, scores: Tensor, matches: slice, pairs: Matches) -> None:
        self.rows, self.columns, self.scores, self.matches = rows, columns, scores, matches
        self._pairs = pairs

    @property
    def at(self) -> tuple[Tensor, Tensor]:
        """Rows and columns of the matches, relative to the tile."""
        inside = self._pairs.rows[self.matches] - self.rows.start
        return inside, self._pairs.columns[self.matches] - self.columns.start

    def pop_matches(self, value: float) -> Tensor:
        """The scores of the matches, float (m,); overwrites them with `value`."""
        if self.matches.start == self.matches.stop:
            return self.scores.new_empty(0)
        at = self.at
        scores = self.scores[at]
        self.scores[at] = value
        return scores

    def set_matches(self, values: Tensor) -> None:
        """Overwrite the scores of the matches with float (m,)."""
        if len(values):
            self.scores[self.at] = values


class TiledScores:
    """scale * image @ text.T + bias as an iterator of tiles; each call computes them again.

    Args:
        image: float (b, E), the rows.
        text: float (B, E), the columns.
        row_ids: int (b,).
        column_ids: int (B,).
        size: rows and columns of a tile; None: by device.
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
        """Scratch memory of a tile, the same at every call."""
        if number not in self._buffers:
            numel = min(self.size[0], len(self.image)) * min(self.size[1], len(self.text))
            self._buffers[number] = self.image.new_empty(numel)
        return self._buffers[number][: rows * columns].view(rows, columns)


def log_sums(scores: TiledScores, logits: Tensor) -> tuple[Tensor, Tensor]:
    """logsumexp of a tile along each axis, from one exp of it if nothing underflows, else from two."""
    peak = logits.amax()
    shared = torch.sub(logits, peak, out=scores.buffer(1, *logits.shape)).exp_()
    sums = shared.sum(1), shared.sum(0)
    info = torch.finfo(logits.dtype)
    # above it, underflowed terms are below rounding; a row far below the peak, or with nan, is not
    least = info.tiny / info.eps * max(logits.shape)
    if torch.stack([each.amin() for each in sums]).amin() > least:
        return sums[0].log_().add_(peak), sums[1].log_().add_(peak)
    return logits.logsumexp(1), logits.logsumexp(0)


Computation = Callable[..., tuple[Tensor, tuple[Tensor | None, ...]]]


def with_gradient(compute: Computation, *inputs: Tensor) -> Tensor:
    """The value of `compute` as an autograd function of `inputs`; `compute` returns the gradient with the value.

    Args:
        compute: takes the detached inputs and `needs_grad`, a bool for each; returns the value, float (), and for each
            input its gradient or None. The gradients are modified in place later.
        inputs: float tensors.

    Raises:
        RuntimeError: in the backward pass, if a second derivative is requested.
    """
    if not torch.is_grad_enabled():
        inputs = tuple(tensor.detach() for tensor in inputs)
    result: Tensor = _WithGradient.apply(compute, *inputs)
    return result


class _WithGradient(torch.autograd.Function):
    """Gradients are computed in the forward pass and scaled in place in the backward pass.

    A second backward pass through a retained graph computes them again.
    """

    @staticmethod
    def forward(ctx: Any, compute: Computation, *inputs: Tensor) -> Tensor:
        ctx.compute, ctx.needs_grad = compute, ctx.needs_input_grad[1:]
        ctx.save_for_backward(*inputs)
        value, ctx.gradients = compute(*(tensor.detach() for tensor in inputs), needs_grad=ctx.needs_grad)
        return value

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "A tiled loss has no second derivative, which create_graph=True requests. For a gradient penalty "
                "write the loss with plain torch operations."
            )
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            _, gradients = ctx.compute(*(tensor.detach() for tensor in ctx.saved_tensors), needs_grad=ctx.needs_grad)
        return (None, *(g if g is None else g.mul_(scale) for g in gradients))
