"""A Vision Transformer (Dosovitskiy et al. 2021, arXiv 2010.11929)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from velm.encoders.base import ImageEncoder, three_channels
from velm.errors import ConfigError
from velm.layers.patch_dropout import PatchDropout
from velm.layers.pooling import MAPHead, Pooling
from velm.layers.positions import LearnedGridPositions, SineGridPositions
from velm.layers.transformer import Activation, TransformerBlock
from velm.outputs import EncoderOutput


class ViTEncoder(ImageEncoder):
    """Patch embedding, 2-D positions, pre-norm Transformer blocks, pooling.

    Accepts any image whose sides are multiples of the patch size. A class token is used for `pooled` only: `features`
    holds the patches, in row-major order, unless `class_in_features` is set. With patch dropout a training step has
    the patches that are kept, which form no grid.

    CLIP's image tower is `positions: learned, pooling: class, input_norm: true, patch_bias: false`; SigLIP's is
    `positions: learned, pooling: map, activation: gelu_tanh, norm_eps: 1e-6`.

    Args:
        dim: width D, divisible by heads; by 4 with sine positions.
        depth: number of Transformer blocks.
        heads: attention heads of a block.
        patch_size: side of a patch, in pixels.
        mlp_ratio: hidden width of a block's MLP, as a multiple of dim.
        dropout: probability, on the output of each branch of a block and on the patches after their positions.
        patch_dropout: fraction of the patches that a training step leaves out, see `velm.layers.patch_dropout`.
        positions: sine (fixed, 2-D) or learned (resized bicubically to the grid of the image).
        position_grid: side of the grid of learned positions, in patches; best image_size / patch_size of training.
        position_antialias: whether that resizing is antialiased, as in open_clip, or not, as in transformers.
        pooling: class (a learned token), mean or attention over the patches, or map (attention and an MLP).
        class_in_features: begin the features with the class token, as transformers' captioners read them; there is no
            grid then, so no attention maps.
        input_norm: LayerNorm before the first block, after the positions, as in CLIP.
        output_norm: LayerNorm behind the last block; false for features of a block in the middle of a tower (LLaVA).
        patch_bias: whether the patch embedding has a bias.
        activation: of the MLPs: gelu, quick_gelu (OpenAI's CLIP) or gelu_tanh (SigLIP).
        norm_eps: added to the variance by the norms.
        image_mean: of the pixels' three channels, in [0, 1]; null: ImageNet's.
        image_std: likewise.
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
        patch_dropout: float = 0.0,
        positions: Literal["sine", "learned"] = "sine",
        position_grid: int = 14,
        position_antialias: bool = True,
        pooling: Literal["class", "mean", "attention", "map"] = "mean",
        class_in_features: bool = False,
        input_norm: bool = False,
        output_norm: bool = True,
        patch_bias: bool = True,
        activation: Activation = "gelu",
        norm_eps: float = 1e-5,
        image_mean: list[float] | None = None,
        image_std: list[float] | None = None,
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim {dim} is not divisible by heads {heads}.")
        if class_in_features and pooling != "class":
            raise ValueError(f"class_in_features needs a class token, and pooling is {pooling!r}; set it to class.")
        self.dim = dim
        self.patch_size, self.class_in_features = patch_size, class_in_features
        self.image_mean = three_channels(image_mean, self.image_mean)
        self.image_std = three_channels(image_std, self.image_std)
        self.patches = nn.Conv2d(3, dim, kernel_size=patch_size, stride=patch_size, bias=patch_bias)
        self.positions: nn.Module = (
            SineGridPositions(dim)
            if positions == "sine"
            else LearnedGridPositions(dim, position_grid, position_antialias)
        )
        self.patch_dropout = PatchDropout(patch_dropout)
        self.class_token: nn.Parameter | None = None
        if pooling == "class":
            self.class_token = nn.Parameter(torch.randn(dim) * 0.02)
        self.input_norm = nn.LayerNorm(dim, eps=norm_eps) if input_norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        mlp: dict[str, Any] = {"mlp_ratio": mlp_ratio, "activation": activation, "norm_eps": norm_eps}
        self.blocks = nn.ModuleList(TransformerBlock(dim, heads=heads, dropout=dropout, **mlp) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=norm_eps) if output_norm else nn.Identity()
        self.pooling: nn.Module = (
            MAPHead(dim, heads, **mlp)
            if pooling == "map"
            else Pooling("first" if pooling == "class" else pooling, dim, heads)
        )

    def forward(self, images: Tensor) -> EncoderOutput:
        grid = self._grid(images)
        x = self._patch_vectors(images, grid)
        x = self.patch_dropout(x + self.positions(grid, x))
        if self.class_token is not None:
            token = self.class_token.to(x.dtype).expand(x.shape[0], 1, -1)
            x = torch.cat([token, x], dim=1)
        x = self.dropout(self.input_norm(x))
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        pooled = self.pooling(x)
        if self.class_in_features:
            return EncoderOutput(x, pooled)
        features = x if self.class_token is None else x[:, 1:]
        whole = features.shape[1] == grid[0] * grid[1]
        return EncoderOutput(features, pooled, grid=grid if whole else None)

    def _patch_vectors(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        """float (B, N, D): the convolution as one matrix product, whose weight gradient is far faster on a CPU."""
        rows, columns = grid
        cut = images.unflatten(3, (columns, -1)).unflatten(2, (rows, -1))  # (B, 3, H', p, W', p)
        cut = cut.permute(0, 2, 4, 1, 3, 5).reshape(images.shape[0], rows * columns, -1)
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
