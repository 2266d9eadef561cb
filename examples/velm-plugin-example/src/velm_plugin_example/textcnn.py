"""A convolutional text encoder; the dilation doubles from layer to layer."""

from __future__ import annotations

from torch import Tensor, nn

from velm import EncoderOutput, TextEncoder


class TextCNN(TextEncoder):
    """Residual dilated convolutions over the tokens, then max pooling (Kim, arXiv 1408.5882).

    Padding positions are zeroed before every convolution, like the padding beyond the edge, so they change no result.

    Args:
        vocab_size: number of different tokens V.
        pad_id: id of the padding token.
        dim: width D.
        depth: number of layers; layer i has dilation 2^i.
        kernel_size: width of a convolution, in tokens; odd.
        dropout: dropout probability on the input of each layer.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        pad_id: int = 0,
        dim: int = 128,
        depth: int = 3,
        kernel_size: int = 3,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size {kernel_size} is even; it must be odd, so that a word is in the middle.")
        self.dim = dim
        self.words = nn.Embedding(vocab_size, dim, padding_idx=pad_id)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(depth))
        self.convolutions = nn.ModuleList(
            nn.Conv1d(dim, dim, kernel_size, dilation=2**i, padding="same") for i in range(depth)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, mask: Tensor) -> EncoderOutput:
        content = mask[:, :, None]  # (B, T, 1)
        features = self.words(tokens)
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            inner = self.dropout(norm(features)) * content
            features = features + convolution(inner.transpose(1, 2)).transpose(1, 2).relu()
        features = features * content
        pooled = features.masked_fill(~content, float("-inf")).amax(1)
        return EncoderOutput(features, pooled, mask=mask)
