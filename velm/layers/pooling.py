"""Pooling: (B, N, D) to (B, D); masked positions never count."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from velm.layers.attention import Attention
from velm.layers.transformer import MLP, Activation

PoolingName = Literal["mean", "max", "first", "last", "attention"]


def mean(features: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean over the positions with content: (B, N, D), bool (B, N) -> (B, D)."""
    if mask is None:
        return features.mean(dim=1)
    total = features.masked_fill(~mask[..., None], 0.0).sum(dim=1)
    return total / mask.sum(dim=1, keepdim=True).clamp(min=1).to(features.dtype)


def maximum(features: Tensor, mask: Tensor | None = None) -> Tensor:
    """Largest value over the positions with content, dimension by dimension: (B, D)."""
    if mask is not None:
        features = features.masked_fill(~mask[..., None], torch.finfo(features.dtype).min)
    return features.amax(dim=1)


def first(features: Tensor, mask: Tensor | None = None) -> Tensor:
    """The first position: (B, D)."""
    return features[:, 0]


def last(features: Tensor, mask: Tensor | None = None) -> Tensor:
    """The last position with content, eos in a text: (B, D)."""
    if mask is None:
        return features[:, -1]
    positions = torch.arange(mask.shape[1], device=mask.device)
    index = (positions * mask).amax(dim=1)
    return features[torch.arange(len(features), device=features.device), index]


class AttentionPooling(nn.Module):
    """Attention with one learned query (Lee et al. 2019, "Set Transformer", section 3.2).

    Args:
        dim: width D, divisible by heads.
        heads: number of heads; each reads dim / heads of the values.
    """

    def __init__(self, dim: int, heads: int = 4) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.empty(dim))
        nn.init.normal_(self.query)
        self.attention = Attention(dim, heads=heads)

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        query = self.query.to(features.dtype).expand(len(features), 1, -1)
        return self.attention(query, features, mask=mask)[:, 0]


class MAPHead(AttentionPooling):
    """Attention pooling and an MLP (Zhai et al. 2022, arXiv 2106.04560, section 3.2; SigLIP): y + mlp(norm(y)).

    Args:
        dim: width D, divisible by heads.
        heads: number of heads.
        mlp_ratio: hidden width of the MLP as a multiple of dim.
        activation: of the MLP.
        norm_eps: added to the variance by the norm.
    """

    def __init__(
        self, dim: int, heads: int, *, mlp_ratio: float = 4.0, activation: Activation = "gelu", norm_eps: float = 1e-5
    ) -> None:
        super().__init__(dim, heads)
        self.norm = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = MLP(dim, round(dim * mlp_ratio), activation=activation)

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        attended = super().forward(features, mask)
        return attended + self.mlp(self.norm(attended))


class Pooling(nn.Module):
    """Pooling by name: `mean`, `max`, `first`, `last`, `attention`.

    Args:
        dim: width D.
        heads: attention heads, for `attention` only.
    """

    def __init__(self, name: PoolingName, dim: int, heads: int = 4) -> None:
        super().__init__()
        functions = {"mean": mean, "max": maximum, "first": first, "last": last}
        if name != "attention" and name not in functions:
            raise ValueError(f"Unknown pooling '{name}'. Available: {', '.join(functions)}, attention.")
        self.attention = AttentionPooling(dim, heads) if name == "attention" else None
        self.function = functions.get(name)

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, N, D), bool (B, N) or None -> (B, D)."""
        if self.attention is not None:
            return self.attention(features, mask)
        assert self.function is not None
        return self.function(features, mask)
