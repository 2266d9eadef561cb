"""`AlternatingBlock`, open_clip's pair of a self-attention block and a cross-attention block."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from velm.layers.attention import KeysValues
from velm.layers.kv_cache import KVCache
from velm.layers.transformer import MLP, Activation, TransformerBlock

__all__ = ["AlternatingBlock"]


class AlternatingBlock(TransformerBlock):
    """A `TransformerBlock` whose self-attention has an MLP of its own, and which norms the memory.

        x = x + self_attention(norm(x))
        x = x + mlp(norm(x))
        x = x + cross_attention(norm(x), norm(memory))
        x = x + memory_mlp(norm(x))

    Args:
        dim, heads, mlp_ratio, dropout, activation, norm_eps: as of `TransformerBlock`, for both MLPs.
        memory_dim: width of the memory.
    """

    def __init__(
        self, dim: int, *, memory_dim: int, mlp_ratio: float = 4.0, dropout: float = 0.0,
        activation: Activation = "gelu", norm_eps: float = 1e-5, **options: Any,
    ) -> None:  # fmt: skip
        shared: dict[str, Any] = {"mlp_ratio": mlp_ratio, "dropout": dropout, "activation": activation}
        super().__init__(dim, memory_dim=memory_dim, norm_eps=norm_eps, **shared, **options)
        self.keys_norm = nn.LayerNorm(memory_dim, eps=norm_eps)
        self.memory_mlp_norm = nn.LayerNorm(dim, eps=norm_eps)
        self.memory_mlp = MLP(dim, round(dim * mlp_ratio), dropout, activation)

    def self_attend(self, x: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        return super().feed_forward(super().self_attend(x, mask, causal))

    def self_attend_step(self, x: Tensor, past: KVCache | None) -> tuple[Tensor, KVCache]:
        x, past = super().self_attend_step(x, past)
        return super().feed_forward(x), past

    def memory_keys_values(self, memory: Tensor) -> KeysValues:
        return super().memory_keys_values(self.keys_norm(memory))

    def feed_forward(self, x: Tensor) -> Tensor:
        return x + self.dropout(self.memory_mlp(self.memory_mlp_norm(x)))
