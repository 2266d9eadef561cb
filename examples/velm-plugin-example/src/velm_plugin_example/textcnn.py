"""A convolutional text encoder: every layer sees twice as many words to the left and right as the one below."""

from __future__ import annotations

from torch import Tensor, nn

from velm import EncoderOutput, TextEncoder


class TextCNN(TextEncoder):
    """Residual dilated convolutions over the words, then their maximum (Kim, arXiv 1408.5882).

    Padding is zeroed before every convolution, as what lies beyond the edge is, so it changes no result.

    Args:
        vocab_size: number of different tokens V.
        pad_id: the token of padding.
        dim: width D of a word.
        depth: number of layers; layer i looks 2^i words to either side, times half the kernel.
        kernel_size: width of a convolution, in words; odd.
        dropout: probability of zeroing a number of a layer's input while training.
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
