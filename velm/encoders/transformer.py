"""A Transformer text encoder."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from velm.encoders.base import TextEncoder
from velm.errors import ConfigError
from velm.layers.pooling import Pooling
from velm.layers.positions import LearnedPositions, SinePositions
from velm.layers.transformer import TransformerBlock
from velm.outputs import EncoderOutput


class TransformerEncoder(TextEncoder):
    """Token embeddings and positions, pre-norm Transformer blocks, pooling.

    CLIP's text tower (Radford et al. 2021) is `causal: true, pooling: last`.

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
        pooling: mean over the tokens, last (eos), first (bos), or attention.
        causal: a token sees only earlier tokens and itself.
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
        pooling: Literal["mean", "last", "first", "attention"] = "mean",
        causal: bool = False,
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim {dim} is not divisible by heads {heads}.")
        if causal and pooling == "first":
            raise ValueError(
                "pooling 'first' with causal: the first token sees only itself; choose 'last', 'mean' or 'attention'."
            )
        self.dim = dim
        self.max_length = max_length
        self.causal = causal
        self.embedding = nn.Embedding(vocab_size, dim, padding_idx=pad_id)
        self.positions: nn.Module = LearnedPositions(dim, max_length) if positions == "learned" else SinePositions(dim)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            TransformerBlock(dim, heads=heads, mlp_ratio=mlp_ratio, dropout=dropout) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim)
        self.pooling = Pooling(pooling, dim, heads)
        # embeddings as large as the positions added to them: next to sines, smaller ones learn far slower
        nn.init.normal_(self.embedding.weight, std=0.02 if positions == "learned" else 0.5**0.5)
        self.embedding.weight.data[pad_id].zero_()

    def forward(self, tokens: Tensor, mask: Tensor) -> EncoderOutput:
        if tokens.shape[1] > self.max_length:
            raise ConfigError(
                f"A text of {tokens.shape[1]} tokens, but max_length is {self.max_length}: "
                "shorten the texts (data.max_length) or raise the text encoder's max_length."
            )
        x = self.embedding(tokens)
        x = self.dropout(x + self.positions(x))
        for block in self.blocks:
            x = block(x, mask=mask, causal=self.causal)
        features = self.norm(x)
        return EncoderOutput(features, self.pooling(features, mask), mask)
