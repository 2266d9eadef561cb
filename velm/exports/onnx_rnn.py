"""The recurrent text encoder by ONNX's own operators, which read texts of several lengths as packed ones are read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from velm.encoders.rnn import RNNEncoder
from velm.outputs import EncoderOutput

__all__ = ["RNNForm"]

_GATES = {"LSTM": ("LSTM", (0, 3, 1, 2)), "GRU": ("GRU", (1, 0, 2)), "RNN_TANH": ("RNN", (0,))}
"""The operator of a mode of `nn.RNNBase`, and torch's gates in its order: i f g o as i o f g, r z n as z r n."""


class RNNForm(nn.Module):
    """An `RNNEncoder` without `pack_padded_sequence`, which cannot be exported; runs in ONNX only."""

    def __init__(self, encoder: RNNEncoder) -> None:
        super().__init__()
        self.encoder, self.dim = encoder, encoder.dim

    def forward(self, tokens: Tensor, mask: Tensor) -> EncoderOutput:
        encoder = self.encoder
        lengths = mask.sum(dim=1).clamp(min=1).to(torch.int32)
        features, final = encoder.embedding(tokens).transpose(0, 1), []
        for layer in range(encoder.rnn.num_layers):
            features, last = _layer(encoder.rnn, layer, features, lengths)
            final.append(last)
        features = features.transpose(0, 1)
        pooled = encoder._last(final[-1]) if encoder.pooling is None else encoder.pooling(features, mask)
        return EncoderOutput(features, pooled, mask)


def _layer(rnn: nn.RNNBase, layer: int, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs float (T, B, directions * H), zero on padding, and final states (directions, B, H), of (T, B, D)."""
    name, order = _GATES[rnn.mode]
    suffixes = [f"_l{layer}", f"_l{layer}_reverse"][: 2 if rnn.bidirectional else 1]

    def stacked(kind: str) -> Tensor:
        gates = [getattr(rnn, f"{kind}{suffix}").detach().chunk(len(order)) for suffix in suffixes]
        return torch.stack([torch.cat([each[gate] for gate in order]) for each in gates])

    length, batch = x.shape[:2]
    directions, hidden = len(suffixes), rnn.hidden_size
    attributes: dict[str, Any] = {"hidden_size": hidden, "direction": "bidirectional" if directions == 2 else "forward"}
    if name == "GRU":
        attributes["linear_before_reset"] = 1
    bias = torch.cat([stacked("bias_ih"), stacked("bias_hh")], dim=1)
    states, final = torch.onnx.ops.symbolic_multi_out(
        name, (x, stacked("weight_ih"), stacked("weight_hh"), bias, lengths), attributes,
        dtypes=(x.dtype, x.dtype), shapes=((length, directions, batch, hidden), (directions, batch, hidden)),
    )  # fmt: skip
    return states.transpose(1, 2).flatten(2), final
