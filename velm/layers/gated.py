"""`GatedBlock`: cross-attention over the text, and over the image behind a gate that is closed at first."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from velm.layers.attention import Attention, KeysValues
from velm.layers.transformer import TransformerBlock

__all__ = ["GatedBlock", "memory_masks"]


def memory_masks(image: Tensor, memory_mask: Tensor | None) -> Tensor:
    """Which positions of a memory are content of the text and of the image, bool (B, 2, N), in this order.

    Args:
        image: bool (B, N), True on positions of the image.
        memory_mask: bool (B, N), True on content; None: all positions are content.
    """
    sources = torch.stack([~image, image], dim=1)
    return sources if memory_mask is None else sources & memory_mask[:, None]


class GatedAttention(nn.Module):
    """Attention over the image with a norm of the queries before it and a gate behind it, tanh(alpha).

    Args:
        dim, heads, memory_dim: as of `GatedBlock`.
        norm_eps: added to the variance by the norm.
    """

    def __init__(self, dim: int, *, heads: int, memory_dim: int, norm_eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=norm_eps)
        self.attention = Attention(dim, heads=heads, memory_dim=memory_dim)
        self.alpha = nn.Parameter(torch.zeros(()))

    @property
    def gate(self) -> Tensor:
        """float (), between -1 and 1."""
        return self.alpha.tanh()


class GatedBlock(TransformerBlock):
    """A `TransformerBlock` that attends over the text, then over the image, whose part is scaled by tanh(alpha).

        x = x + self_attention(norm(x))
        x = x + cross_attention(norm(x), text)
        x = x + tanh(alpha) * image_attention(norm(x), image)        # the module `image`
        x = x + mlp(norm(x))

    alpha is a number that is learnt from 0 on: a new block equals one without the image, and the image enters as far as
    it lowers the loss (Flamingo, Alayrac et al. 2022, arXiv 2204.14198, section 2.2; the MLP behind it is not gated
    here). The methods take the memory with one channel more than `memory_dim`, 1 on positions of the image and 0 on
    those of the text, and as `memory_mask` what `memory_masks` returns.

    Args:
        dim: width.
        heads: attention heads; divides `dim`.
        memory_dim: width of the memory, without the channel that marks the image.
        norm_eps: added to the variance by the norms.
        options: of `TransformerBlock`.
    """

    def __init__(self, dim: int, *, heads: int, memory_dim: int, norm_eps: float = 1e-5, **options: Any) -> None:
        super().__init__(dim, heads=heads, memory_dim=memory_dim, norm_eps=norm_eps, **options)
        self.image = GatedAttention(dim, heads=heads, memory_dim=memory_dim, norm_eps=norm_eps)

    def memory_keys_values(self, memory: Tensor) -> KeysValues:
        """Keys and values of each position for the one attention that reads it; memory float (B, N, memory_dim + 1)."""
        features, image = memory[..., :-1], memory[..., -1:] > 0
        text_attention = self._cross_attention()[1]
        both = torch.where(image, self.image.attention.key_value(features), text_attention.key_value(features))
        return text_attention.split(both)

    def cross_attend(self, x: Tensor, keys_values: KeysValues, memory_mask: Tensor | None = None) -> Tensor:
        """Attention of x (B, T, dim) over the text, then over the image; memory_mask bool (B, 2, N)."""
        text, image = _sources(memory_mask)
        x = super().cross_attend(x, keys_values, text)
        attended = self.image.attention.attend(self.image.norm(x), keys_values, mask=image)
        return x + self.image.gate * self.dropout(attended)

    def weights(self, x: Tensor, keys_values: KeysValues, memory_mask: Tensor | None = None) -> Tensor:
        """Weights of both attentions, the image's scaled by the absolute gate, that together sum to 1: (B, T, N)."""
        text, image = _sources(memory_mask)
        of_text = super().weights(x, keys_values, text)
        x = super().cross_attend(x, keys_values, text)
        of_image = self.image.attention.weights(self.image.norm(x), keys_values, mask=image)
        both = of_text + self.image.gate.abs() * of_image
        return both / both.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(both.dtype).tiny)


def _sources(memory_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    assert memory_mask is not None, "a GatedBlock needs the masks of text and image"
    return memory_mask[:, 0], memory_mask[:, 1]
