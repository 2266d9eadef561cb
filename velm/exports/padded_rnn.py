"""A recurrent text encoder as a fixed number of steps over padded texts, which torch.export can follow."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from velm.encoders.rnn import RNNEncoder
from velm.outputs import EncoderOutput

__all__ = ["PaddedRNN"]


class PaddedRNN(nn.Module):
    """An `RNNEncoder` in eval mode without `pack_padded_sequence`: the same outputs on content, zero on padding.

    A layer that reads forwards has seen no padding when it reaches the last token of a text. One that reads backwards
    is given the tokens in reverse order, the padding still behind them:

        a b c . .   forwards:  a b c . .     backwards:  c b a . .

    torch.export makes one graph of every step, so texts are filled to `max_length` tokens, or cut.

    Args:
        encoder: its weights are copied.
        max_length: longest text in tokens.
    """

    def __init__(self, encoder: RNNEncoder, max_length: int) -> None:
        super().__init__()
        self.embedding, self.pooling, self.dim, self.max_length = (
            encoder.embedding, encoder.pooling, encoder.dim, max_length
        )  # fmt: skip
        self.layers = nn.ModuleList(
            nn.ModuleList(_single(encoder.rnn, f"_l{layer}{end}") for end in ("", "_reverse")[: _directions(encoder)])
            for layer in range(encoder.rnn.num_layers)
        )

    def forward(self, tokens: Tensor, mask: Tensor) -> EncoderOutput:
        length = tokens.shape[1]
        full = F.pad(mask, (0, self.max_length - length))
        x = self.embedding(F.pad(tokens, (0, self.max_length - length)))
        lengths = full.sum(dim=1).clamp(min=1)[:, None]
        places = torch.arange(self.max_length, device=tokens.device)
        backwards = torch.where(places < lengths, lengths - 1 - places, places)
        last: list[Tensor] = []
        for layer in self.layers:
            outputs, last = [], []
            for number, rnn in enumerate(cast("nn.ModuleList", layer)):
                states = rnn(_rows(x, backwards) if number else x)[0]
                last.append(_rows(states, lengths - 1)[:, 0])
                outputs.append(_rows(states, backwards) if number else states)
            x = torch.cat(outputs, dim=-1) * (places < lengths)[:, :, None]
        features = x.index_select(1, torch.arange(length, device=x.device))  # a slice would be guarded against its end
        pooled = torch.cat(last, dim=-1) if self.pooling is None else self.pooling(features, mask)
        return EncoderOutput(features, pooled, mask)


def _directions(encoder: RNNEncoder) -> int:
    return 2 if encoder.rnn.bidirectional else 1


def _single(rnn: nn.RNNBase, suffix: str) -> nn.RNNBase:
    """One layer in one direction of a recurrent network."""
    weights = {name: getattr(rnn, f"{name}{suffix}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
    cls: Any = type(rnn)
    single: nn.RNNBase = cls(weights["weight_ih"].shape[1], rnn.hidden_size, batch_first=True)
    single.load_state_dict({f"{name}_l0": tensor for name, tensor in weights.items()})
    return single.to(weights["weight_ih"]).eval()


def _rows(x: Tensor, places: Tensor) -> Tensor:
    """x float (B, T, D) at places int64 (B, P)."""
    return x.gather(1, places[:, :, None].expand(-1, -1, x.shape[2]))
