"""Position embeddings, sinusoidal and learned: 1-D for the tokens of a text, 2-D for the grid of an image.

Learned image positions have a fixed grid and are resized to the grid of the input.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def sine(positions: Tensor, dim: int, temperature: float = 10_000.0) -> Tensor:
    """Sines and cosines of a position at dim / 2 wavelengths (Vaswani et al. 2017, section 3.5).

    Args:
        positions: float or int (...), in tokens or cells.
        dim: even.
        temperature: the wavelengths run from 2 pi to nearly 2 pi times this.

    Returns:
        (..., dim), first the sines, then the cosines; float64 for float64 positions, else float32.
    """
    check_even(dim)
    positions = positions if positions.dtype == torch.float64 else positions.float()  # bfloat16 counts to 256 only
    steps = torch.arange(dim // 2, device=positions.device, dtype=positions.dtype)
    angles = positions[..., None] * temperature ** (-2 * steps / dim)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def sine_grid(grid: tuple[int, int], dim: int, like: Tensor, temperature: float = 10_000.0) -> Tensor:
    """Positions of every cell of a grid, in row-major order: half of `dim` encodes the row, half the column.

    Args:
        grid: (H', W'), in cells.
        dim: divisible by 4.
        like: gives device and dtype.
        temperature: as in `sine`.

    Returns:
        (H' * W', dim).
    """
    check_grid_dim(dim)
    wide = torch.float64 if like.dtype == torch.float64 else torch.float32
    rows, columns = (sine(torch.arange(n, device=like.device, dtype=wide), dim // 2, temperature) for n in grid)
    height, width = grid
    rows = rows[:, None].expand(height, width, -1)
    columns = columns[None].expand(height, width, -1)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1).to(like.dtype)


def check_even(dim: int) -> None:
    """Raise a ValueError unless `dim` is even."""
    if dim % 2:
        raise ValueError(f"Sine positions need an even dim (a sine and a cosine each); dim is {dim}.")


def check_grid_dim(dim: int) -> None:
    """Raise a ValueError unless `dim` is divisible by 4."""
    if dim % 4:
        raise ValueError(
            f"2-D sine positions need a dim divisible by 4 (sine and cosine of row and column); dim is {dim}."
        )


class SinePositions(nn.Module):
    """(T, D) fixed positions of T tokens."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        check_even(dim)
        self.dim = dim

    def forward(self, like: Tensor, start: int = 0) -> Tensor:
        """Positions start ... start + T - 1 for `like` (..., T, D), in its dtype, on its device."""
        wide = torch.float64 if like.dtype == torch.float64 else torch.float32
        positions = torch.arange(start, start + like.shape[-2], device=like.device, dtype=wide)
        return sine(positions, self.dim).to(like.dtype)


class LearnedPositions(nn.Module):
    """(T, D) positions of T tokens, one learned vector for each.

    Args:
        dim: width D.
        max_length: number of positions, in tokens.
    """

    def __init__(self, dim: int, max_length: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(max_length, dim))
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, like: Tensor, start: int = 0) -> Tensor:
        """Positions start ... start + T - 1 for `like` (..., T, D)."""
        stop = start + like.shape[-2]
        if stop > len(self.weight):
            raise ValueError(
                f"{stop} tokens, but there are positions for max_length {len(self.weight)} tokens only: "
                "shorten the texts or raise max_length."
            )
        return self.weight[start:stop]


class SineGridPositions(nn.Module):
    """(N, D) fixed positions of the cells of any grid; see `sine_grid`."""

    def __init__(self, dim: int, temperature: float = 10_000.0) -> None:
        super().__init__()
        check_grid_dim(dim)
        self.dim, self.temperature = dim, temperature

    def forward(self, grid: tuple[int, int], like: Tensor) -> Tensor:
        return sine_grid(grid, self.dim, like, self.temperature)


def resize_grid(weight: Tensor, grid: tuple[int, int], antialias: bool = True) -> Tensor:
    """Positions float (1, D, H, W) of a grid, bicubically as (1, D, H', W'), in single precision at least."""
    # antialias: a smaller grid skips no learned vector; wide: half precision has no kernel
    wide = weight if weight.dtype == torch.float64 else weight.float()
    return F.interpolate(wide, size=grid, mode="bicubic", align_corners=False, antialias=antialias)


class LearnedGridPositions(nn.Module):
    """(N, D) positions learned on a fixed grid, resized bicubically to the grid of the input.

    Args:
        dim: width D.
        grid: cells along a side of the learned grid.
        antialias: as open_clip and timm resize; false: as transformers does.
    """

    def __init__(self, dim: int, grid: int, antialias: bool = True) -> None:
        super().__init__()
        if grid < 1:
            raise ValueError(f"A grid of positions has at least 1 cell a side; position_grid is {grid}.")
        self.antialias = antialias
        self.weight = nn.Parameter(torch.empty(1, dim, grid, grid))
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, grid: tuple[int, int], like: Tensor) -> Tensor:
        weight: Tensor = self.weight
        if tuple(weight.shape[-2:]) != tuple(grid):
            weight = resize_grid(weight, grid, self.antialias)
        return weight[0].flatten(1).T.to(like.dtype)
