"""A Vision Transformer (Dosovitskiy et al. 2021, arXiv 2010.11929)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from velm.encoders.base import ImageEncoder
from velm.errors import ConfigError
from velm.layers.pooling import Pooling
from velm.layers.positions import LearnedGridPositions, SineGridPositions
from velm.layers.transformer import TransformerBlock
from velm.outputs import EncoderOutput


class ViTEncoder(ImageEncoder):
    """Patch embedding, 2-D positions, pre-norm Transformer blocks, pooling.

    Accepts any image whose sides are multiples of the patch size. A class token is used for `pooled` only: `features`
    holds the patches, in row-major order.

    Args:
        dim: width D, divisible by heads; by 4 with sine positions.
        depth: number of Transformer blocks.
        heads: attention heads of a block.
        patch_size: side of a patch, in pixels.
        mlp_ratio: hidden width of a block's MLP, as a multiple of dim.
        dropout: probability, on the output of each branch of a block and on the patches after their positions.
        positions: sine (fixed, 2-D) or learned (resized bicubically to the grid of the image).
        position_grid: side of the grid of learned positions, in patches; best image_size / patch_size of training.
        pooling: class (a learned token), mean or attention over the patches.
        input_norm: LayerNorm before the first block, after the positions, as in CLIP.
    """

    def __init__(
        self,
        *,
        dim: int = 192,
        depth: int = 6,
        heads: int = 4,
        patch_size: int = 16,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        positions: Literal["sine", "learned"] = "sine",
        position_grid: int = 14,
        pooling: Literal["class", "mean", "attention"] = "mean",
        input_norm: bool = False,
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim {dim} is not divisible by heads {heads}.")
        self.dim = dim
        self.patch_size = patch_size
        self.patches = nn.Conv2d(3, dim, kernel_size=patch_size, stride=patch_size)
        self.positions: nn.Module = (
            SineGridPositions(dim) if positions == "sine" else LearnedGridPositions(dim, position_grid)
        )
        self.class_token: nn.Parameter | None = None
        if pooling == "class":
            self.class_token = nn.Parameter(torch.randn(dim) * 0.02)
        self.input_norm = nn.LayerNorm(dim) if input_norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            TransformerBlock(dim, heads=heads, mlp_ratio=mlp_ratio, dropout=dropout) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim)
        self.pooling = Pooling("first" if pooling == "class" else pooling, dim, heads)

    def forward(self, images: Tensor) -> EncoderOutput:
        grid = self._grid(images)
        x = self._patch_vectors(images, grid)
        x = x + self.positions(grid, x)
        if self.class_token is not None:
            token = self.class_token.to(x.dtype).expand(len(x), 1, -1)
            x = torch.cat([token, x], dim=1)
        x = self.dropout(self.input_norm(x))
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        features = x if self.class_token is None else x[:, 1:]
        return EncoderOutput(features, self.pooling(x), grid=grid)

    def _patch_vectors(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        """float (B, N, D): the convolution as one matrix product, whose weight gradient is far faster on a CPU."""
        rows, columns = grid
        cut = images.unflatten(3, (columns, -1)).unflatten(2, (rows, -1))  # (B, 3, H', p, W', p)
        cut = cut.permute(0, 2, 4, 1, 3, 5).reshape(len(images), rows * columns, -1)
        return F.linear(cut, self.patches.weight.flatten(1), self.patches.bias)

    def _grid(self, images: Tensor) -> tuple[int, int]:
        """(H', W') of an image, in patches."""
        height, width = images.shape[-2:]
        size = self.patch_size
        if min(height, width) < size or height % size or width % size:
            raise ConfigError(
                f"An image of {height} x {width} pixels cannot be cut into patches of {size} x {size}: "
                f"choose an image_size that is a multiple of patch_size {size}, or another patch_size."
            )
        return height // size, width // size
