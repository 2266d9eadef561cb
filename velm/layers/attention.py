"""Multi-head attention: self-attention and cross-attention, over whole sequences or one token at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KeysValues = tuple[Tensor, Tensor]
"""Keys and values, each float (B, heads, N, D / heads)."""

MATMUL_MAX_SCORES = 256**2
"""Queries times keys up to which `matmul_attention` trains; see `matmul_is_faster`."""
STEP_MAX_QUERIES = 16
"""Queries up to which `matmul_attention` decodes, such as the beams of one image."""
STEP_MIN_KEYS = 1024
"""Keys, of all rows and heads, from which it decodes; the fused kernel is called faster."""


def attention_mask(mask: Tensor | None, causal: bool, queries: int) -> Tensor | None:
    """Combine key padding (bool (B, N) or None) and causality into one mask, bool (B, 1, 1 or T, N).

    Query t of T sees key n of N if n <= t + N - T: the last query sees every key.
    """
    if mask is None:
        return None
    if not causal:
        return mask[:, None, None, :]
    keys = mask.shape[1]
    seen = torch.ones(queries, keys, dtype=torch.bool, device=mask.device).tril(keys - queries)
    return mask[:, None, None, :] & seen


def matmul_is_faster(query: Tensor, keys: Tensor) -> bool:
    """Whether `matmul_attention` is faster than torch's fused kernel: in bfloat16 on a CPU.

    There the fused kernel packs all keys in each call.
    In training, of short sequences: the fused kernel's backward pass takes 11 ms a layer; matmul, softmax, matmul take
    3 to 4 ms forward and backward (docs/performance.md; `python -m benchmarks clip_step coca_step`). In decoding, of a
    few queries over many keys: 32 captions over 255 positions take 1.1 ms of 6 (`python -m benchmarks generate`).
    """
    if query.device.type != "cpu" or query.dtype != torch.bfloat16:
        return False
    if torch.is_grad_enabled() and query.requires_grad:
        return query.shape[2] * keys.shape[2] <= MATMUL_MAX_SCORES
    return query.shape[2] <= STEP_MAX_QUERIES and math.prod(keys.shape[:3]) >= STEP_MIN_KEYS


def matmul_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    attn_mask: Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None = None,
) -> Tensor:
    """`F.scaled_dot_product_attention` as matmul, softmax, matmul; stores all T x N weights.

    Heads of keys may be fewer than those of queries, as with its `enable_gqa`.
    """
    length, groups = query.shape[2], query.shape[1] // keys.shape[1]
    query = query * (query.shape[-1] ** -0.5 if scale is None else scale)
    if groups > 1:
        query = query.unflatten(1, (-1, groups)).flatten(2, 3)  # heads that share a key are positions of one head
    scores = query @ keys.mT
    if is_causal:
        attn_mask = torch.ones(length, keys.shape[2], dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None:
        repeated = groups > 1 and attn_mask.shape[-2] > 1
        seen = torch.cat([attn_mask] * groups, dim=-2) if repeated else attn_mask
        scores = scores.masked_fill_(~seen, -math.inf)  # in place: the gradient does not need the scores
    weights = scores.softmax(dim=-1)
    if dropout_p:
        weights = F.dropout(weights, dropout_p)
    attended = weights.to(values.dtype) @ values
    return attended if groups == 1 else attended.unflatten(2, (groups, length)).flatten(1, 2)


def mixed_attention(query: Tensor, keys: Tensor, values: Tensor, **options: Any) -> Tensor:
    """`F.scaled_dot_product_attention` in the dtype of keys and values, cast to the query's."""
    with torch.autocast(query.device.type, enabled=False):
        return F.scaled_dot_product_attention(query.to(keys.dtype), keys, values, **options).to(query.dtype)


def attention_kernel(query: Tensor, keys: Tensor) -> Callable[..., Tensor]:
    """The function that attends: arguments and result as of `F.scaled_dot_product_attention`."""
    if query.dtype != keys.dtype:
        return mixed_attention
    return matmul_attention if matmul_is_faster(query, keys) else F.scaled_dot_product_attention


def cached(keys_values: Tensor) -> Tensor:
    """Keys and values of a token as a cache holds them: float32 in place of bfloat16 on a CPU, unless with gradients.

    There torch's fused kernel packs all keys in each call, and reads those in float32 as they are: a step of 32
    captions of 20 tokens takes 0.13 ms a block instead of 0.9.
    """
    if keys_values.device.type != "cpu" or keys_values.dtype != torch.bfloat16 or torch.is_grad_enabled():
        return keys_values
    return keys_values.float()


def cast_for_autocast(x: Tensor) -> Tensor:
    """Cast x as autocast does for a matrix product; x itself if autocast is off."""
    kind = x.device.type
    if x.dtype != torch.float32 or not torch.is_autocast_enabled(kind):
        return x
    return x.to(torch.get_autocast_dtype(kind))


class Attention(nn.Module):
    """Scaled dot-product attention with `heads` heads (Vaswani et al. 2017, equation 1).

    A query whose keys are all masked gets the zero vector before the output projection, never NaN.

    Args:
        dim: width of queries and output.
        heads: number of heads; divides `dim`.
        dropout: probability of dropping an attention weight.
        memory_dim: width of the sequence attended over; None: `dim`.
    """

    def __init__(self, dim: int, *, heads: int, dropout: float = 0.0, memory_dim: int | None = None) -> None:
        super().__init__()
        if heads < 1 or dim % heads != 0:
            raise ValueError(f"dim {dim} is not divisible by heads {heads}; choose a multiple of the heads.")
        self.heads = heads
        self.dropout = dropout
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim if memory_dim is None else memory_dim, 2 * dim)
        self.output = nn.Linear(dim, dim)
        for linear in (self.query, self.key_value, self.output):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def _split(self, x: Tensor) -> Tensor:
        """(B, T, D) to (B, heads, T, D / heads)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def keys_values(self, memory: Tensor) -> KeysValues:
        """Project a memory, float (B, N, memory_dim), to keys and values."""
        return self.split(self.key_value(memory))

    def split(self, key_value: Tensor) -> KeysValues:
        """Split the output of `key_value`, float (B, N, 2 D), into keys and values, as views."""
        keys, values = key_value.chunk(2, dim=-1)
        return self._split(keys), self._split(values)

    def forward(
        self, x: Tensor, memory: Tensor | None = None, *, mask: Tensor | None = None, causal: bool = False
    ) -> Tensor:
        """Attend from x over `memory`, or over x itself if it is None.

        Args:
            x: float (B, T, dim).
            memory: float (B, N, memory_dim).
            mask: bool (B, N), True on content; None: all positions are content.
            causal: position t sees positions 0 ... t only.
        """
        x = cast_for_autocast(x)  # once instead of for queries, keys and values
        return self.attend(x, self.keys_values(x if memory is None else memory), mask=mask, causal=causal)

    def attend(self, x: Tensor, keys_values: KeysValues, *, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """`forward` over precomputed keys and values. Causal: the last query sees every key."""
        keys, values = keys_values
        square = causal and x.shape[1] == keys.shape[2]
        if causal and not square and mask is None:
            mask = keys.new_ones(keys.shape[0], keys.shape[2], dtype=torch.bool)
        allowed = attention_mask(mask, causal, x.shape[1])
        seen = None if allowed is None else allowed.any(dim=-1, keepdim=True)
        if allowed is not None and seen is not None:
            allowed = allowed | ~seen  # softmax over no key is NaN: attend to all keys, zero the result below
        query = self._split(self.query(x))
        attended = attention_kernel(query, keys)(
            query,
            keys,
            values,
            attn_mask=allowed,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=square and allowed is None,
        )
        if seen is not None:
            attended = attended.masked_fill(~seen, 0.0)
        return self.output(attended.transpose(1, 2).flatten(2))

    def weights(self, x: Tensor, keys_values: KeysValues, *, mask: Tensor | None = None) -> Tensor:
        """Attention weights of x (B, T, dim), averaged over heads: float (B, T, N), rows summing to 1.

        A row whose keys are all masked is zero.
        """
        query, keys = self._split(self.query(x)), keys_values[0]
        scores = query @ keys.transpose(-2, -1) * query.shape[-1] ** -0.5
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None, :], torch.finfo(scores.dtype).min)
        weights = scores.softmax(dim=-1).mean(dim=1)
        return weights if mask is None else weights * mask[:, None, :]
