"""The pre-norm Transformer block that encoders and decoders are stacked from."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor, nn
from torch.nn import functional as F

from velm.layers.attention import Attention, KeysValues, cached
from velm.layers.kv_cache import KVCache

Activation = Literal["gelu", "quick_gelu", "gelu_tanh"]


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the approximation of GELU (Hendrycks and Gimpel 2016, section 2) in OpenAI's CLIP."""

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(1.702 * x) / 1.702


def activation_layer(name: Activation) -> nn.Module:
    """GELU by name: `gelu` (exact), `quick_gelu` (OpenAI's CLIP) or `gelu_tanh` (SigLIP, GPT-2).

    Raises:
        ValueError: there is no such activation.
    """
    if name == "quick_gelu":
        return QuickGELU()
    if name not in get_args(Activation):
        raise ValueError(f"Unknown activation {name!r}. Available: {', '.join(get_args(Activation))}.")
    return nn.GELU(approximate="tanh" if name == "gelu_tanh" else "none")


class MLP(nn.Sequential):
    """Linear, activation, linear: D to `hidden` to D."""

    def __init__(self, dim: int, hidden: int, dropout: float = 0.0, activation: Activation = "gelu") -> None:
        layers = activation_layer(activation), nn.Dropout(dropout)
        super().__init__(nn.Linear(dim, hidden), *layers, nn.Linear(hidden, dim))


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention (with `memory_dim`) and MLP, each a pre-norm residual branch.

        x = x + self_attention(norm(x))
        x = x + cross_attention(norm(x), memory)
        x = x + mlp(norm(x))

    Pre-norm (Xiong et al. 2020, arXiv 2002.04745) trains without a long warm-up. A stack of blocks needs a final norm.

    Args:
        dim: width.
        heads: number of attention heads; divides `dim`.
        mlp_ratio: hidden width of the MLP as a multiple of `dim`.
        dropout: probability, on the output of each branch.
        memory_dim: width of the memory; None: no cross-attention.
        activation: of the MLP, see `activation_layer`.
        norm_eps: added to the variance by the norms.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        memory_dim: int | None = None,
        activation: Activation = "gelu",
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim, eps=norm_eps)
        self.attention = Attention(dim, heads=heads)
        self.memory_norm: nn.LayerNorm | None = None
        self.memory_attention: Attention | None = None
        if memory_dim is not None:
            self.memory_norm = nn.LayerNorm(dim, eps=norm_eps)
            self.memory_attention = Attention(dim, heads=heads, memory_dim=memory_dim)
        self.mlp_norm = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = MLP(dim, round(dim * mlp_ratio), dropout, activation)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        causal: bool = False,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
    ) -> Tensor:
        """One block over a whole sequence.

        Args:
            x: float (B, T, dim).
            mask: bool (B, T), True on content; None: all positions are content.
            causal: position t sees positions 0 ... t only.
            memory: float (B, N, memory_dim); required if the block has a `memory_dim`, else None.
            memory_mask: bool (B, N).

        Returns:
            float (B, T, dim).
        """
        if (memory is None) != (self.memory_attention is None):
            raise ValueError(
                f"memory is {'missing' if memory is None else 'given'} but the block was built "
                f"{'with' if memory is None else 'without'} a memory_dim."
            )
        x = self.self_attend(x, mask, causal)
        if memory is not None:
            x = self.cross_attend(x, self.memory_keys_values(memory), memory_mask)
        return self.feed_forward(x)

    def self_attend(self, x: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """Self-attention over a whole sequence, float (B, T, dim)."""
        return x + self.dropout(self.attention(self.attention_norm(x), mask=mask, causal=causal))

    def self_attend_step(self, x: Tensor, past: KVCache | None) -> tuple[Tensor, KVCache]:
        """`self_attend` for the next token only.

        Args:
            x: float (B, 1, dim).
            past: keys and values of the earlier tokens, concatenated, (t, B, 2 * dim); None before the first.

        Returns:
            float (B, 1, dim), and the cache with this token appended.
        """
        normed = self.attention_norm(x)
        new = cached(self.attention.key_value(normed)[:, 0])
        past = KVCache.of(new) if past is None else past.append(new)
        keys_values = self.attention.split(past.tensor.transpose(0, 1))
        return x + self.dropout(self.attention.attend(normed, keys_values)), past

    def memory_keys_values(self, memory: Tensor) -> KeysValues:
        """Keys and values of a memory float (B, N, memory_dim) for `cross_attend` and `weights`, computed once."""
        return self._cross_attention()[1].keys_values(memory)

    def cross_attend(self, x: Tensor, keys_values: KeysValues, memory_mask: Tensor | None = None) -> Tensor:
        """Attention of x (B, T, dim) over the memory."""
        norm, attention = self._cross_attention()
        return x + self.dropout(attention.attend(norm(x), keys_values, mask=memory_mask))

    def weights(self, x: Tensor, keys_values: KeysValues, memory_mask: Tensor | None = None) -> Tensor:
        """Attention weights of `cross_attend`, averaged over heads: float (B, T, N)."""
        norm, attention = self._cross_attention()
        return attention.weights(norm(x), keys_values, mask=memory_mask)

    def feed_forward(self, x: Tensor) -> Tensor:
        """The MLP, position by position."""
        return x + self.dropout(self.mlp(self.mlp_norm(x)))

    def _cross_attention(self) -> tuple[nn.LayerNorm, Attention]:
        assert self.memory_norm is not None, "built without memory_dim"
        assert self.memory_attention is not None
        return self.memory_norm, self.memory_attention
