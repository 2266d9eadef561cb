"""The decoder's unimodal blocks as a text encoder: alignment and captioning encode the text in one pass (CoCa)."""

from __future__ import annotations

import inspect
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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

    Its own weights are those of a final norm, as `ln_final` in open_clip, and of the class token; all others are the
    decoder's, trained and frozen with it. Its output holds the blocks' output as `words`, from which the decoder
    continues, with the same dropout mask.

    A class token stands at the end and sees the text and, as the published weights of open_clip were trained, one
    position of padding behind it (`correct_cls_mask=False`), but itself only behind a text of full length:

        tokens       bos  a   dog  eos  pad  pad  class
        class sees   x    x   x    x    x    -    -

    Args:
        decoder: the decoder whose blocks are shared; set by the builder.
        pooling: last (eos), mean over the tokens, or class (a learned token behind them, as in CoCa).
        fill_id: the token that padding holds, with pooling 'class'; null: the padding token.
        pad_id: the padding token; set by the builder.
    """

    def __init__(
        self,
        *,
        decoder: UnimodalDecoder,
        pooling: Literal["last", "mean", "class"] = "last",
        fill_id: int | None = None,
        pad_id: int = 0,
    ) -> None:
        super().__init__()
        if decoder.words_dim is None:
            raise ValueError(f"{type(decoder).__name__} has no blocks without cross-attention.")
        self.dim = decoder.words_dim
        self.max_length = decoder.max_length
        self.read = decoder.read_words  # a method, not a module: the weights are registered once, with the decoder
        self.norm = nn.LayerNorm(self.dim)
        self.fill_id = pad_id if fill_id is None else fill_id
        self.class_token = nn.Parameter(torch.randn(self.dim) * 0.01) if pooling == "class" else None
        if pooling == "class" and "appended" not in inspect.signature(self.read).parameters:
            raise ValueError(
                f"{type(decoder).__name__} reads tokens only, so no class token can follow them: take last or mean."
            )
        self.pooling = None if pooling == "class" else Pooling(pooling, self.dim)

    def forward(self, tokens: Tensor, mask: Tensor) -> EncoderOutput:
        if self.pooling is not None:
            words = self.read(tokens)
            features = self._normed(words)
            return EncoderOutput(features, self.pooling(features, mask), mask, words=words)
        words, last = self._read_with_class_token(tokens, mask)
        return EncoderOutput(self._normed(words), self._normed(last), mask, words=words)

    def _read_with_class_token(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The blocks' output for the tokens, float (B, T, D), and for the class token, float (B, D)."""
        length = tokens.shape[1]
        if self.max_length is None or length < self.max_length:
            tokens, mask = F.pad(tokens, (0, 1)), F.pad(mask, (0, 1))
        tokens = tokens.masked_fill(~mask, self.fill_id)
        seen = F.pad(mask, (1, 0), value=True)  # a position is seen if the one before it is content
        x = self.read(tokens, appended=self.class_token, mask=seen)  # type: ignore[call-arg]
        return x[:, :length], x[:, -1]

    def _normed(self, words: Tensor) -> Tensor:
        normed: Tensor = self.norm(words.to(self.norm.weight.dtype))  # `.double()` may be called on this part alone
        return normed
