"""The decoder's unimodal blocks as a text encoder: alignment and captioning encode the text in one pass (CoCa)."""

from __future__ import annotations

from typing import Literal, Protocol

from torch import Tensor, nn

from velm.encoders.base import TextEncoder
from velm.layers.pooling import Pooling
from velm.outputs import EncoderOutput


class UnimodalDecoder(Protocol):
    """A decoder with unimodal blocks; see `velm.decoders.base.Decoder`."""

    words_dim: int | None
    max_length: int | None

    def read_words(self, tokens: Tensor) -> Tensor:
        """Causal and without a memory: int64 (B, T) -> float (B, T, words_dim)."""
        ...


class DecoderTextEncoder(TextEncoder):
    """CoCa's text tower (Yu et al. 2022, arXiv 2205.01917, section 3.2): the decoder's blocks without cross-attention.

    Its own weights are those of a final norm, as `ln_final` in open_clip; all others are the decoder's, trained and
    frozen with it. Its output holds the blocks' output as `words`, from which the decoder continues, with the same
    dropout mask.

    Args:
        decoder: the decoder whose blocks are shared; set by the builder.
        pooling: last (eos) or mean over the tokens.
    """

    def __init__(self, *, decoder: UnimodalDecoder, pooling: Literal["last", "mean"] = "last") -> None:
        super().__init__()
        if decoder.words_dim is None:
            raise ValueError(f"{type(decoder).__name__} has no blocks without cross-attention.")
        self.dim = decoder.words_dim
        self.max_length = decoder.max_length
        self.read = decoder.read_words  # a method, not a module: the weights are registered once, with the decoder
        self.norm = nn.LayerNorm(self.dim)
        self.pooling = Pooling(pooling, self.dim)

    def forward(self, tokens: Tensor, mask: Tensor) -> EncoderOutput:
        words = self.read(tokens)
        features = self.norm(words.to(self.norm.weight.dtype))  # `.double()` may be called on this part alone
        return EncoderOutput(features, self.pooling(features, mask), mask, words=words)
