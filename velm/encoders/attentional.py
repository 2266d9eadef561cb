"""Attention with many learned queries over another image encoder: CoCa's attentional pooler."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from velm import registry
from velm.encoders.base import ImageEncoder, three_channels
from velm.layers.attention import Attention
from velm.outputs import EncoderOutput

__all__ = ["AttentionalEncoder"]


class AttentionalPooler(nn.Module):
    """Attention of learned queries over positions, float (B, N, memory_dim) to (B, queries, dim).

    A module of its own, so that its parameters follow those of the encoder, as `train_last` and `layer_decay` expect.
    """

    def __init__(self, dim: int, *, queries: int, heads: int, memory_dim: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(queries, dim))
        self.query_norm = nn.LayerNorm(dim)
        self.attention = Attention(dim, heads=heads, memory_dim=memory_dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, positions: Tensor) -> Tensor:
        queries = self.query_norm(self.queries).expand(positions.shape[0], -1, -1)
        normed: Tensor = self.norm(self.attention(queries, positions))
        return normed


class AttentionalEncoder(ImageEncoder):
    """Reads an image encoder by learned queries (Yu et al. 2022, arXiv 2205.01917, section 3.2).

    As in open_clip, one attention serves both heads: the first query's output is `pooled`, the others' are `features`,
    of which there are as many for every image size. They lie on no grid.

        encoder ── features, and its class token ── attention ── norm ─┬─ first query: pooled
                                       learned queries ──┘             └─ the others: features

    Args:
        encoder: config of the image encoder; where its pooling is 'class', its class token is attended over too.
        dim: width D of the queries and of the output, divisible by heads.
        queries: number of learned queries, at least 2.
        heads: attention heads.
        image_mean: of the pixels' three channels, in [0, 1]; null: the encoder's.
        image_std: likewise.
    """

    has_grid = False

    def __init__(
        self,
        *,
        encoder: dict[str, Any],
        dim: int = 512,
        queries: int = 256,
        heads: int = 8,
        image_mean: list[float] | None = None,
        image_std: list[float] | None = None,
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim {dim} is not divisible by heads {heads}.")
        if queries < 2:
            raise ValueError(
                f"queries {queries}: one makes the pooled vector, and a feature needs another; at least 2."
            )
        self.dim = dim
        self.encoder: Any = registry.image_encoders.build(encoder)
        self.reads_class = registry.split_config(encoder)[1].get("pooling") == "class"
        self.image_mean = three_channels(image_mean, self.encoder.image_mean)
        self.image_std = three_channels(image_std, self.encoder.image_std)
        self.pooler = AttentionalPooler(dim, queries=queries, heads=heads, memory_dim=self.encoder.dim)

    def maps(self, images: Tensor) -> list[Tensor]:
        """Those of the encoder that is read."""
        maps: list[Tensor] = self.encoder.maps(images)
        return maps

    def forward(self, images: Tensor) -> EncoderOutput:
        output = self.encoder(images)
        positions = output.features
        if self.reads_class:
            positions = torch.cat([output.pooled[:, None], positions], dim=1)
        x = self.pooler(positions)
        return EncoderOutput(x[:, 1:], x[:, 0])
