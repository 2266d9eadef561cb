"""A recurrent text encoder: Elman, GRU or LSTM."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from velm.encoders.base import TextEncoder
from velm.layers.pooling import Pooling
from velm.outputs import EncoderOutput

CELLS: dict[str, type[nn.RNN] | type[nn.GRU] | type[nn.LSTM]] = {"tanh": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}


class RNNEncoder(TextEncoder):
    """Token embeddings, recurrent layers, pooling.

    The plain cell is Elman's, h_t = tanh(W x_t + U h_{t-1} + b); `gru` is that of Cho et al. 2014, `lstm` that of
    Hochreiter and Schmidhuber 1997. Texts are packed: no cell sees padding.

    Args:
        vocab_size: number of tokens V.
        pad_id: the padding token.
        dim: width D of the output; with two directions, each has dim / 2.
        embed_dim: width of a token embedding; None: dim.
        cell: tanh (the plain one), gru or lstm.
        layers: number of stacked recurrent layers.
        bidirectional: also read from the end to the beginning.
        dropout: probability, on token embeddings and on the output of each layer.
        word_dropout: probability of zeroing the whole embedding of a token (Iyyer et al. 2015,
            "Deep Unordered Composition Rivals Syntactic Methods", section 3).
        pooling: last (the final state of each direction), mean, max or attention over the tokens.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        pad_id: int = 0,
        dim: int = 256,
        embed_dim: int | None = None,
        cell: Literal["tanh", "gru", "lstm"] = "gru",
        layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
        word_dropout: float = 0.0,
        pooling: Literal["last", "mean", "max", "attention"] = "last",
    ) -> None:
        super().__init__()
        if cell not in CELLS:
            raise ValueError(f"Unknown cell '{cell}'. Available: {', '.join(CELLS)}.")
        if layers < 1:
            raise ValueError(f"layers is {layers}; an RNN has at least 1.")
        if bidirectional and dim % 2:
            raise ValueError(f"dim {dim} is odd, but two directions share it: choose an even dim.")
        self.dim = dim
        self.embedding = nn.Embedding(vocab_size, embed_dim or dim, padding_idx=pad_id)
        self.dropout = nn.Dropout(dropout)
        self.word_dropout = nn.Dropout1d(word_dropout)
        self.rnn = CELLS[cell](
            embed_dim or dim,
            dim // 2 if bidirectional else dim,
            num_layers=layers,
            batch_first=True,
            dropout=dropout if layers > 1 else 0.0,
            bidirectional=bidirectional,
        )
        self.pooling = None if pooling == "last" else Pooling(pooling, dim)
        _initialise(self.rnn, cell)

    def forward(self, tokens: Tensor, mask: Tensor) -> EncoderOutput:
        words = self.dropout(self.word_dropout(self.embedding(tokens)))
        lengths = mask.sum(dim=1).clamp(min=1).cpu()  # required by pack_padded_sequence
        packed = pack_padded_sequence(words, lengths, batch_first=True, enforce_sorted=False)
        states, final = self.rnn(packed)
        features, _ = pad_packed_sequence(states, batch_first=True, total_length=tokens.shape[1])
        features = self.dropout(features)
        pooled = self._last(final) if self.pooling is None else self.pooling(features, mask)
        return EncoderOutput(features, pooled, mask)

    def _last(self, final: Tensor | tuple[Tensor, Tensor]) -> Tensor:
        """The final state of the last layer, both directions concatenated."""
        hidden = final[0] if isinstance(final, tuple) else final
        directions = 2 if self.rnn.bidirectional else 1
        return self.dropout(torch.cat(list(hidden[-directions:]), dim=-1))


def _initialise(rnn: nn.RNNBase, cell: str) -> None:
    """Orthogonal U, against vanishing and exploding signals (Saxe et al. 2014).

    The forget gate's bias of an LSTM is 1 (Jozefowicz et al. 2015).
    """
    size = rnn.hidden_size
    for name, parameter in rnn.named_parameters():
        if name.startswith("weight_hh"):
            for gate in parameter.data.split(size):
                nn.init.orthogonal_(gate)
        elif name.startswith("weight_ih"):
            for gate in parameter.data.split(size):
                nn.init.xavier_uniform_(gate)
        else:
            nn.init.zeros_(parameter)
            if cell == "lstm" and name.startswith("bias_ih"):
                parameter.data[size : 2 * size].fill_(1.0)
