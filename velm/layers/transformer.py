"""The pre-norm Transformer block that encoders and decoders are stacked from."""

from __future__ import annotations

from torch import Tensor, nn

from velm.layers.attention import Attention, KeysValues


class MLP(nn.Sequential):
    """Linear, GELU, linear: D to D by way of `hidden`."""

    def __init__(self, dim: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__(nn.Linear(dim, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, dim))


class TransformerBlock(nn.Module):
    """Self-attention, attention over a memory where there is one, MLP; each normalised before, added after.

        x ── + ─ norm ─ self-attention ── + ─ norm ─ memory attention ── + ─ norm ─ MLP ── +

    Pre-norm (Xiong et al. 2020) trains without a long warm-up; whoever stacks blocks adds a last norm.

    Args:
        dim: width.
        heads: number of attention heads; divides `dim`.
        mlp_ratio: hidden width of the MLP as a multiple of `dim`.
        dropout: probability, on what each of the parts adds.
        memory_dim: width of the memory; None: a block without memory attention.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        memory_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = Attention(dim, heads=heads)
        self.memory_norm: nn.LayerNorm | None = None
        self.memory_attention: Attention | None = None
        if memory_dim is not None:
            self.memory_norm = nn.LayerNorm(dim)
            self.memory_attention = Attention(dim, heads=heads, memory_dim=memory_dim)
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = MLP(dim, round(dim * mlp_ratio), dropout)
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
            mask: bool (B, T), True on content; None when everything is.
            causal: position t sees positions 0 ... t only.
            memory: float (B, N, memory_dim); for a block that was built with a `memory_dim`.
            memory_mask: bool (B, N).

        Returns:
            float (B, T, dim).
        """
        x = x + self.dropout(self.attention(self.attention_norm(x), mask=mask, causal=causal))
        if (memory is None) != (self.memory_attention is None):
            raise ValueError(
                f"memory is {'missing' if memory is None else 'given'} but the block was built "
                f"{'with' if memory is None else 'without'} a memory_dim."
            )
        if self.memory_attention is not None and memory is not None:
            x = self.look(x, self.memory_attention.keys_values(memory), memory_mask)
        return self.think(x)

    def look(self, x: Tensor, keys_values: KeysValues, memory_mask: Tensor | None = None) -> Tensor:
        """The part that attends over the memory, given as keys and values."""
        assert self.memory_norm is not None and self.memory_attention is not None
        attended = self.memory_attention.attend(self.memory_norm(x), keys_values, mask=memory_mask)
        return x + self.dropout(attended)

    def think(self, x: Tensor) -> Tensor:
        """The part that looks at one position at a time."""
        return x + self.dropout(self.mlp(self.mlp_norm(x)))
