"""Show, Attend and Tell with a contrastive head, as in tutorials: torch modules and a loop over the tokens."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence

from benchmarks.inputs import Feed
from benchmarks.peers.base import Peer

__all__ = ["Loop", "PlainLoop", "from_ours"]


class PlainLoop(nn.Module):
    """The model of `benchmarks.workloads.rnn_step`, with the equations of `velm.decoders.rnn`.

    Args:
        trunk: images float (B, 3, S, S) to features (B, C, H', W').
        channels: C.
        vocabulary: V.
        dim: width of the GRU, the LSTM and the joint space.
        words: width of a token embedding.
    """

    def __init__(self, trunk: nn.Module, channels: int, vocabulary: int, dim: int, words: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.text_embedding = nn.Embedding(vocabulary, words, padding_idx=0)
        self.gru = nn.GRU(words, dim, batch_first=True)
        self.image_projection = nn.Linear(channels, dim, bias=False)
        self.text_projection = nn.Linear(dim, dim, bias=False)
        self.log_scale = nn.Parameter(torch.zeros(()))
        self.embedding = nn.Embedding(vocabulary, words, padding_idx=0)
        self.memory_projection = nn.Linear(channels, dim)
        self.key, self.query = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.score = nn.Linear(dim, 1, bias=False)
        self.initial = nn.Linear(dim, 2 * dim)
        self.cell = nn.LSTMCell(words + dim, dim)
        self.deep_output = nn.Linear(2 * dim, words)
        self.output = nn.Linear(words, vocabulary)
        self.output.weight = self.embedding.weight

    def forward(self, images: Tensor, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Loss of a batch: tokens int64 (B, T), padded with 0."""
        features = self.trunk(images).flatten(2).transpose(1, 2)
        contrastive = self.contrast(features.mean(dim=1), tokens, lengths)
        logits, labels = self.write(features, tokens[:, :-1]), tokens[:, 1:]
        captioning = F.cross_entropy(_wide(logits.flatten(0, 1)), labels.flatten(), ignore_index=0)
        return contrastive + captioning

    def contrast(self, pooled: Tensor, tokens: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(
            self.text_embedding(tokens), lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        _, last = self.gru(packed)
        images = F.normalize(_wide(self.image_projection(pooled)), dim=-1)
        texts = F.normalize(_wide(self.text_projection(last[-1])), dim=-1)
        logits = self.log_scale.exp() * images @ texts.T
        places = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, places) + F.cross_entropy(logits.T, places)) / 2

    def write(self, features: Tensor, tokens: Tensor) -> Tensor:
        """Logits (B, T, V), computed token by token."""
        embedded, memory = self.embedding(tokens), self.memory_projection(features)
        hidden, cell = self.initial(memory.mean(dim=1)).tanh().chunk(2, dim=1)
        logits = []
        for word in embedded.unbind(1):
            scores = self.score((self.key(memory) + self.query(hidden)[:, None]).tanh()).squeeze(2)
            context = (scores.softmax(dim=1)[:, :, None] * memory).sum(dim=1)
            hidden, cell = self.cell(torch.cat([word, context], dim=1), (hidden, cell))
            deep = (word + self.deep_output(torch.cat([hidden, context], dim=1))).tanh()
            logits.append(self.output(deep))
        return torch.stack(logits, dim=1)


class Loop(Peer):
    """`PlainLoop` with fused AdamW, so that the optimizers do not differ."""

    def loss(self, feed: Feed) -> Tensor:
        found: Tensor = self.call(feed.floats, feed.trimmed, feed.lengths)
        return found


def from_ours(ours: Mapping[str, Tensor], log_scale: Tensor, trunk: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """VELM's weights or gradients under the parameter names of the loop; gates in the order of torch's LSTMCell.

    Args:
        ours: of the model, by name.
        log_scale: of the contrastive loss.
        trunk: of the image encoder's trunk, by its own names.
    """
    token, hidden = (
        {kind: ours[f"decoder.{name}.{kind}"] for kind in ("weight", "bias")} for name in ("from_token", "from_hidden")
    )
    dim = len(hidden["weight"]) // 5  # the query, then four gates
    query = {kind: tensor[:dim] for kind, tensor in hidden.items()}
    gates = {kind: _gates(tensor[dim:]) for kind, tensor in hidden.items()}
    inputs = torch.cat([token["weight"], ours["decoder.from_context.weight"]], dim=1)
    same = ("embedding", "memory_projection", "key", "initial", "deep_output")
    return {
        **{f"trunk.{name}": tensor for name, tensor in trunk.items()},
        "text_embedding.weight": ours["text_encoder.embedding.weight"],
        **{f"gru.{name.rpartition('.')[2]}": t for name, t in ours.items() if name.startswith("text_encoder.rnn.")},
        **{f"{side}_projection.weight": ours[f"{side}_projection.weight"] for side in ("image", "text")},
        "log_scale": log_scale,
        **{name.removeprefix("decoder."): t for name, t in ours.items() if name.split(".")[1] in same
           and name.startswith("decoder.")},
        **{f"query.{kind}": tensor for kind, tensor in query.items()},
        "score.weight": ours["decoder.score"][None],
        "cell.weight_ih": _gates(inputs), "cell.bias_ih": _gates(token["bias"]),
        "cell.weight_hh": gates["weight"], "cell.bias_hh": gates["bias"],
        "output.bias": ours["decoder.output_projection.bias"],
    }  # fmt: skip


def _wide(x: Tensor) -> Tensor:
    """At least float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _gates(tensor: Tensor) -> Tensor:
    """From the order (input, forget, output, candidate) to (input, forget, candidate, output)."""
    let_in, keep, let_out, candidate = tensor.chunk(4)
    return torch.cat([let_in, keep, candidate, let_out])
