"""A compact convolutional network: an image of 64 x 64 pixels becomes a grid of 8 x 8 vectors."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from velm.encoders.base import ImageEncoder, last_of_each_size
from velm.layers.pooling import Pooling
from velm.layers.positions import SineGridPositions
from velm.outputs import EncoderOutput

Norm = Literal["group", "batch", "none"]


class CNNEncoder(ImageEncoder):
    """Convolutional stages, each halving the grid, then position embeddings and pooling.

        pixels ─ stem / 2 ─ stage / 2 ─ stage / 2 ─ + positions ─ `depth` blocks ─ features ─ pooled

    Pooling discards positions, and with them relations such as 'left of'. So sine positions are added to the cells
    before the last ReLU, which binds content to position; pooling keeps that, and a decoder that attends over the
    features reads it too. Synthetic scenes are few objects on a large background: max pooling learns far faster than
    the mean, which the background dominates.

    Args:
        dim: width D, divisible by 4 (the 2-D positions).
        architecture: residual (pre-activation blocks, He et al. 2016) or plain (convolution, ReLU, max-pooling).
        widths: channels of the stages before the last, which has dim; every stage halves the grid, so a cell of
            the output spans 2 ** (len(widths) + 1) pixels a side. None: a quarter and a half of dim.
        depth: further blocks (plain: convolution + ReLU) after the positions, on the final grid.
        norm: group (an image's features do not depend on its neighbours in the batch, nor on the number of
            devices), batch or none. None: group for residual, none for plain.
        dropout: probability of zeroing a channel of the features.
        pooling: max, mean or attention over the cells.
    """

    def __init__(
        self,
        *,
        dim: int = 128,
        architecture: Literal["residual", "plain"] = "residual",
        widths: list[int] | None = None,
        depth: int = 0,
        norm: Norm | None = None,
        dropout: float = 0.0,
        pooling: Literal["max", "mean", "attention"] = "max",
    ) -> None:
        super().__init__()
        if architecture not in ("residual", "plain"):
            raise ValueError(f"Unknown architecture '{architecture}'. Available: residual, plain.")
        if norm not in (None, "group", "batch", "none"):
            raise ValueError(f"Unknown norm '{norm}'. Available: group, batch, none.")
        if depth < 0:
            raise ValueError(f"depth is {depth}; it counts blocks, so at least 0.")
        self.dim = dim
        widths = [dim // 4, dim // 2] if widths is None else list(widths)
        norm = norm or ("group" if architecture == "residual" else "none")
        self.positions = SineGridPositions(dim)
        if architecture == "residual":
            self.stages, self.blocks = _residual(widths, dim, depth, norm)
        else:
            self.stages, self.blocks = _plain(widths, dim, depth, norm)
        self.dropout = nn.Dropout1d(dropout)
        self.pooling = Pooling(pooling, dim)

    def forward(self, images: Tensor) -> EncoderOutput:
        # channels last: a third faster on CPU and with tensor cores
        x = self._last(self.stages(images.contiguous(memory_format=torch.channels_last)))
        features = self.dropout(x.flatten(2)).transpose(1, 2)
        return EncoderOutput(features, self.pooling(features), grid=(x.shape[-2], x.shape[-1]))

    def maps(self, images: Tensor) -> list[Tensor]:
        """A map of each stage; the last one is `features`."""
        x, outputs = images.contiguous(memory_format=torch.channels_last), []
        for stage in self.stages:
            x = stage(x)
            outputs.append(x)
        return [*last_of_each_size(outputs)[:-1], self._last(x)]

    def _last(self, x: Tensor) -> Tensor:
        """The last map, (B, D, H', W'), from the output of the stages."""
        grid = (x.shape[-2], x.shape[-1])
        last: Tensor = self.blocks(x + self.positions(grid, x).T.unflatten(1, grid))
        return last


class _Block(nn.Module):
    """x + conv(relu(norm(conv(relu(norm(x)))))); the shortcut averages and maps x if the shape changes."""

    def __init__(self, channels: int, width: int, norm: Norm, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.norm1, self.norm2 = _norm(norm, channels), _norm(norm, width)
        self.conv1 = _conv(channels, width, stride)
        self.conv2 = _conv(width, width)
        self.shortcut = nn.Conv2d(channels, width, 1, bias=False) if stride > 1 or channels != width else None

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.norm1(x))
        if self.shortcut is not None:
            x = self.shortcut(F.avg_pool2d(active, self.stride, ceil_mode=True))
        return x + self.conv2(F.relu(self.norm2(self.conv1(active))))


def _residual(widths: list[int], dim: int, depth: int, norm: Norm) -> tuple[nn.Sequential, nn.Sequential]:
    """A strided convolution and strided blocks; `depth` blocks and a last norm and ReLU."""
    channels = [*widths, dim]
    stages = nn.Sequential(_conv(3, channels[0], 2), *(_Block(a, b, norm, 2) for a, b in pairwise(channels)))
    blocks = [_Block(dim, dim, norm) for _ in range(depth)]
    return stages, nn.Sequential(*blocks, _norm(norm, dim), nn.ReLU())


def _plain(widths: list[int], dim: int, depth: int, norm: Norm) -> tuple[nn.Sequential, nn.Sequential]:
    """Stages of convolution, ReLU and max pooling; the last ReLU comes after the positions."""
    stages: list[nn.Module] = []
    for channels, width in pairwise([3, *widths, dim]):
        stages += [_conv(channels, width), _norm(norm, width), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True)]
    del stages[-2]
    blocks: list[nn.Module] = [nn.ReLU()]
    for _ in range(depth):
        blocks += [_conv(dim, dim), _norm(norm, dim), nn.ReLU()]
    return nn.Sequential(*stages), nn.Sequential(*blocks)


def _conv(channels: int, width: int, stride: int = 1) -> nn.Conv2d:
    """3 x 3, scaled so that ReLUs keep the variance (He et al. 2015)."""
    conv = nn.Conv2d(channels, width, 3, stride, padding=1)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    conv.bias = nn.Parameter(torch.zeros(width))
    return conv


def _norm(norm: Norm, channels: int) -> nn.Module:
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if norm == "none":
        return nn.Identity()
    # groups of at least 8 channels: alone on a 1 x 1 grid, a channel would be normalised away
    groups = next(g for g in (8, 4, 2, 1) if channels % g == 0 and (g == 1 or channels >= 8 * g))
    return nn.GroupNorm(groups, channels)
