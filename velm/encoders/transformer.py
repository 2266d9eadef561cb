"""A Transformer text encoder."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from velm.encoders.base import TextEncoder
from velm.errors import ConfigError
from velm.layers.pooling import Pooling
from velm.layers.positions import LearnedPositions, SinePositions
from velm.layers.transformer import Activation, TransformerBlock
from velm.outputs import EncoderOutput


class TransformerEncoder(TextEncoder):
    """Token embeddings and positions, pre-norm Transformer blocks, pooling.

    CLIP's text tower (Radford et al. 2021) is `causal: true, pooling: last`; SigLIP's (Zhai et al. 2023) is `pooling:
    end, fixed_length: 64, fill_id: 1, reads_bos: false`: it attends over the padding and pools the last position.

    Args:
        vocab_size: number of tokens V.
        pad_id: the padding token.
        dim: width D, divisible by heads; even with sine positions.
        depth: number of Transformer blocks.
        heads: attention heads of a block.
        mlp_ratio: hidden width of a block's MLP, as a multiple of dim.
        dropout: probability, on the output of each branch of a block and on the tokens after their positions.
        max_length: longest text in tokens, bos and eos included.
        positions: learned (one vector per position) or sine (fixed).
        pooling: mean over the tokens, last (eos), first (bos), attention, or end (the last position, padding included;
            needs fixed_length).
        causal: a token sees only earlier tokens and itself.
        fixed_length: every text is filled to so many tokens, over which it attends as over content; null: padding is
            masked.
        fill_id: token that a text is filled with; null: the padding token.
        reads_bos: false leaves bos out.
        activation: of the MLPs: gelu, quick_gelu (OpenAI's CLIP) or gelu_tanh (SigLIP).
        norm_eps: added to the variance by the norms.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        pad_id: int = 0,
        dim: int = 256,
        depth: int = 4,
        heads: int = 4,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        max_length: int = 128,
        positions: Literal["learned", "sine"] = "learned",
        pooling: Literal["mean", "last", "first", "attention", "end"] = "mean",
        causal: bool = False,
        fixed_length: int | None = None,
        fill_id: int | None = None,
        reads_bos: bool = True,
        activation: Activation = "gelu",
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim {dim} is not divisible by heads {heads}.")
        if causal and pooling == "first":
            raise ValueError(
                "pooling 'first' with causal: the first token sees only itself; choose 'last', 'mean' or 'attention'."
            )
        if pooling == "end" and fixed_length is None:
            raise ValueError("pooling 'end' reads the last position of a fixed_length, and there is none; set it.")
        self.dim = dim
        self.causal, self.reads_bos = causal, reads_bos
        self.fixed_length, self.fill_id = fixed_length, pad_id if fill_id is None else fill_id
        places = max_length if reads_bos else max_length - 1
        if fixed_length is not None and fixed_length != places:
            raise ValueError(
                f"fixed_length {fixed_length} is not max_length {max_length}{'' if reads_bos else ' without bos'}."
            )
        self.max_length, self.pads = max_length, fixed_length is None
        masked = fixed_length is None  # otherwise padding is attended over, and its vector learns
        self.embedding = nn.Embedding(vocab_size, dim, padding_idx=pad_id if masked else None)
        self.positions: nn.Module = LearnedPositions(dim, places) if positions == "learned" else SinePositions(dim)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            TransformerBlock(
                dim, heads=heads, mlp_ratio=mlp_ratio, dropout=dropout, activation=activation, norm_eps=norm_eps
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim, eps=norm_eps)
        self.pools_end = pooling == "end"
        self.pooling = Pooling("last" if pooling == "end" else pooling, dim, heads)
        # embeddings as large as the positions added to them: next to sines, smaller ones learn far slower
        nn.init.normal_(self.embedding.weight, std=0.02 if positions == "learned" else 0.5**0.5)
        if masked:
            self.embedding.weight.data[pad_id].zero_()

    def forward(self, tokens: Tensor, mask: Tensor) -> EncoderOutput:
        if tokens.shape[1] > self.max_length:
            raise ConfigError(
                f"A text of {tokens.shape[1]} tokens, but max_length is {self.max_length}: "
                "shorten the texts (data.max_length) or raise the text encoder's max_length."
            )
        if not self.reads_bos:
            tokens, mask = tokens[:, 1:], mask[:, 1:]
        content, length = mask, tokens.shape[1]
        if self.fixed_length is not None:
            rest = self.fixed_length - length
            tokens = F.pad(tokens.masked_fill(~mask, self.fill_id), (0, rest), value=self.fill_id)
            mask = F.pad(mask, (0, rest))
        x = self.embedding(tokens)
        x = self.dropout(x + self.positions(x))
        for block in self.blocks:
            x = block(x, mask=mask if self.fixed_length is None else None, causal=self.causal)
        x = self.norm(x)
        pooled = self.pooling(x, None if self.pools_end else mask)
        return EncoderOutput(x[:, :length], pooled, content)
