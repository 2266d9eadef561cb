"""A small U-Net that predicts what the noise of an image was: pixels and a time in, pixels out."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["UNet"]


class UNet(nn.Module):
    """A U-Net (Ronneberger et al. 2015, arXiv 1505.04597) over patches of pixels, with the time in every block.

        pixels ─ patches ─ block ─────────────────────────── block, block ─ patches ─ pixels
                             └ shrink ─ block ────── block ─ enlarge ┘
                                        └ blocks, attention ┘

    A patch of pixels is one cell with more channels (Luhman & Luhman 2022, arXiv 2207.04316): 64 x 64 pixels cost what
    16 x 16 do.

    Args:
        widths: channels of the fine and of the coarse grid, multiples of 8.
        patch: side of a patch in pixels; the side of an image is a multiple of twice as many.
    """

    def __init__(self, *, widths: tuple[int, int] = (96, 192), patch: int = 4) -> None:
        super().__init__()
        fine, coarse = widths
        self.patch, self.time_dim = patch, coarse
        self.time = nn.Sequential(nn.Linear(64, self.time_dim), nn.SiLU(), nn.Linear(self.time_dim, self.time_dim))
        self.enter = nn.Conv2d(3 * patch**2, fine, 3, padding=1)
        self.fine_in = Block(fine, fine, self.time_dim)
        self.shrink = nn.Conv2d(fine, coarse, 3, stride=2, padding=1)
        self.coarse_in = Block(coarse, coarse, self.time_dim)
        self.middle_in = Block(coarse, coarse, self.time_dim)
        self.attention = Attention(coarse)
        self.middle_out = Block(coarse, coarse, self.time_dim)
        self.coarse_out = Block(2 * coarse, coarse, self.time_dim)
        self.enlarge = nn.Conv2d(coarse, fine, 3, padding=1)
        self.fine_out = Block(2 * fine, fine, self.time_dim)
        self.last = Block(fine, fine, self.time_dim)
        self.leave = nn.Sequential(nn.GroupNorm(8, fine), nn.SiLU(), _zero(nn.Conv2d(fine, 3 * patch**2, 3, padding=1)))
        self.to(memory_format=torch.channels_last)

    def forward(self, pixels: Tensor, time: Tensor) -> Tensor:
        """Pixels float (B, 3, H, W) and times float (B,) in [0, 1] to float (B, 3, H, W)."""
        t = self.time(_waves(time))
        x = F.pixel_unshuffle(pixels, self.patch).contiguous(memory_format=torch.channels_last)
        fine = self.fine_in(self.enter(x), t)
        coarse = self.coarse_in(self.shrink(fine), t)
        x = self.middle_out(self.attention(self.middle_in(coarse, t)), t)
        x = self.coarse_out(torch.cat([x, coarse], dim=1), t)
        x = self.enlarge(F.interpolate(x, scale_factor=2.0))
        x = self.last(self.fine_out(torch.cat([x, fine], dim=1), t), t)
        return F.pixel_shuffle(self.leave(x), self.patch)


class Block(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))); the time scales and shifts the second norm."""

    def __init__(self, channels: int, width: int, time_dim: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, channels), nn.GroupNorm(8, width)
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1)
        self.conv2 = _zero(nn.Conv2d(width, width, 3, padding=1))
        self.time = nn.Linear(time_dim, 2 * width)
        self.shortcut = nn.Identity() if channels == width else nn.Conv2d(channels, width, 1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        scale, shift = self.time(F.silu(t))[:, :, None, None].chunk(2, dim=1)
        h = self.norm2(self.conv1(F.silu(self.norm1(x)))) * (1 + scale) + shift
        return self.shortcut(x) + self.conv2(F.silu(h))


class Attention(nn.Module):
    """Each cell attends to every cell, which says where the other object is."""

    def __init__(self, channels: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(8, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.project = _zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm(x)).flatten(2).unflatten(1, (3, self.heads, -1)).transpose(-1, -2)
        y = F.scaled_dot_product_attention(*qkv.unbind(1))
        return x + self.project(y.transpose(-1, -2).reshape(x.shape))


def _waves(time: Tensor) -> Tensor:
    """Times in [0, 1] as sines and cosines, float (B, 64)."""
    angles = time[:, None] * torch.logspace(0, 3, 32, device=time.device) * math.pi / 2
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def _zero(conv: nn.Conv2d) -> nn.Conv2d:
    """A convolution that starts as zero, so that a block starts as the identity."""
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(conv.bias)
    return conv
