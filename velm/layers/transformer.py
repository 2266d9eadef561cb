"""The pre-norm Transformer block that encoders and decoders are stacked from."""

from __future__ import annotations

from torch import Tensor, nn

from velm.layers.attention import Attention, KeysValues
from velm.layers.kv_cache import Growing


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
        if (memory is None) != (self.memory_attention is None):
            raise ValueError(
                f"memory is {'missing' if memory is None else 'given'} but the block was built "
                f"{'with' if memory is None else 'without'} a memory_dim."
            )
        x = self.listen(x, mask, causal)
        if memory is not None:
            x = self.look(x, self.memory_keys_values(memory), memory_mask)
        return self.think(x)

    def listen(self, x: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """The part that attends over the sequence itself."""
        return x + self.dropout(self.attention(self.attention_norm(x), mask=mask, causal=causal))

    def remember(self, x: Tensor, past: Growing | None) -> tuple[Tensor, Growing]:
        """`listen` for the next position alone, x (B, 1, dim), after a `past`; and the past with it in.

        The past holds keys and values side by side, float (t, B, 2 * dim).
        """
        x_normed = self.attention_norm(x)
        new = self.attention.key_value(x_normed)[:, 0]
        past = Growing.of(new) if past is None else past.append(new)
        keys_values = self.attention.split(past.tensor.transpose(0, 1))
        return x + self.dropout(self.attention.attend(x_normed, keys_values)), past

    def memory_keys_values(self, memory: Tensor) -> KeysValues:
        """What `look` and `weights` take, computed once for a memory float (B, N, memory_dim)."""
        return self._over_memory()[1].keys_values(memory)

    def look(self, x: Tensor, keys_values: KeysValues, memory_mask: Tensor | None = None) -> Tensor:
        """The part that attends over the memory."""
        norm, attention = self._over_memory()
        return x + self.dropout(attention.attend(norm(x), keys_values, mask=memory_mask))

    def weights(self, x: Tensor, keys_values: KeysValues, memory_mask: Tensor | None = None) -> Tensor:
        """Where `look` looks, averaged over heads: float (B, T, N)."""
        norm, attention = self._over_memory()
        return attention.weights(norm(x), keys_values, mask=memory_mask)

    def think(self, x: Tensor) -> Tensor:
        """The part that works on each position alone."""
        return x + self.dropout(self.mlp(self.mlp_norm(x)))

    def _over_memory(self) -> tuple[nn.LayerNorm, Attention]:
        assert self.memory_norm is not None, "built without memory_dim"
        assert self.memory_attention is not None
        return self.memory_norm, self.memory_attention
