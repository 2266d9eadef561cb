"""A recurrent decoder with additive attention: Show, Attend and Tell (Xu et al. 2015, arXiv 1502.03044)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from velm.decoders.base import Decoder, DecoderState
from velm.layers.beam_memory import BeamMemory
from velm.outputs import DecoderOutput


@dataclass(frozen=True)
class RNNState(DecoderState):
    """The state of the cell.

    Attributes:
        hidden: float (R, dim), h.
        cell: float (R, dim), c of an LSTM; h again for a GRU.
        memory: keys (G, N, A) and values (G, N, dim).
        attention: float (R, N), alpha of the last step; None before the first step.
    """

    hidden: Tensor
    cell: Tensor
    memory: BeamMemory
    attention: Tensor | None = None

    def select(self, rows: Tensor) -> RNNState:
        attention = None if self.attention is None else self.attention.index_select(0, rows)
        hidden, cell = self.hidden.index_select(0, rows), self.cell.index_select(0, rows)
        return RNNState(hidden, cell, self.memory.select(rows), attention)

    def first(self, count: int) -> RNNState:
        """The first `count` rows, as views."""
        if count == len(self.hidden):
            return self
        return RNNState(self.hidden[:count], self.cell[:count], self.memory.first(count))


class RNNDecoder(Decoder):
    """LSTM or GRU with additive attention over the memory at every step (Xu et al. 2015).

        e_ti = v . tanh(K m_i + Q h_t-1)    alpha_t = softmax_i e_ti           m: the memory, projected to `dim`
        z_t = beta_t sum_i alpha_ti m_i     beta_t = sigmoid(f h_t-1), or 1 without `gate`
        h_t = cell(E y_t-1, z_t, h_t-1)     hidden = tanh(E y_t-1 + L_h h_t + L_z z_t)

    `forward` computes everything that does not depend on h_t-1 for all steps at once, and drops a caption from the loop
    when it ends: hidden states and attention of padding are zeros.

    Args:
        vocab_size: number of tokens.
        memory_dim: width of the memory.
        pad_id: the padding token, at the end of captions.
        dim: width of the cell and of the projected memory.
        embed_dim: width of the token embeddings and of the output hidden states; None: `dim`.
        cell: 'lstm' or 'gru'.
        attention_dim: width of queries and keys; None: half of `dim`.
        dropout: probability, on the embeddings and on the output.
        memory_dropout: probability, on the projected memory.
        gate: scale the context by beta_t, a scalar per step (section 4.2.1).
        doubly_stochastic: weight of sum_i (1 - sum_t alpha_ti)^2, a mean over the batch (equation 14).
        tie_embeddings: the output projection's weight is the token embedding (Press and Wolf 2017).
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        memory_dim: int,
        pad_id: int = 0,
        dim: int = 512,
        embed_dim: int | None = None,
        cell: Literal["lstm", "gru"] = "lstm",
        attention_dim: int | None = None,
        dropout: float = 0.5,
        memory_dropout: float = 0.0,
        gate: bool = False,
        doubly_stochastic: float = 0.0,
        tie_embeddings: bool = True,
    ) -> None:
        super().__init__()
        if cell not in ("lstm", "gru"):
            raise ValueError(f"Unknown cell {cell!r}. Available: lstm, gru.")
        embed_dim = dim if embed_dim is None else embed_dim
        attention_dim = max(1, dim // 2) if attention_dim is None else attention_dim
        gates = dim * (4 if cell == "lstm" else 3)
        self.pad_id, self.cell, self.doubly_stochastic = pad_id, cell, doubly_stochastic
        self.widths = [attention_dim, 1 if gate else 0, gates]
        self.embedding = nn.Embedding(vocab_size, embed_dim, padding_idx=pad_id)
        self.memory_projection = nn.Linear(memory_dim, dim)
        self.key = nn.Linear(dim, attention_dim)
        self.score = nn.Parameter(torch.empty(attention_dim).uniform_(-1, 1) * attention_dim**-0.5)
        self.initial = nn.Linear(dim, 2 * dim if cell == "lstm" else dim)
        self.from_token = nn.Linear(embed_dim, gates)
        self.from_context = nn.Linear(dim, gates, bias=False)
        self.from_hidden = nn.Linear(dim, sum(self.widths))  # the query, beta and the gates in one product
        self.deep_output = nn.Linear(2 * dim, embed_dim)
        self.dropout = nn.Dropout(dropout)
        self.memory_dropout = nn.Dropout(memory_dropout)
        self.output_projection = nn.Linear(embed_dim, vocab_size)
        self._initialise(dim, embed_dim)
        if tie_embeddings:
            self.output_projection.weight = self.embedding.weight

    def _initialise(self, dim: int, embed_dim: int) -> None:
        nn.init.normal_(self.embedding.weight, std=embed_dim**-0.5)  # vectors of length 1: logits of order 1
        nn.init.normal_(self.from_token.weight)  # gates distinguish tokens from the first step on
        nn.init.zeros_(self.output_projection.bias)
        if self.cell == "lstm":
            nn.init.ones_(self.from_token.bias[dim : 2 * dim])  # forget-gate bias 1: the cell keeps its state at first

    def forward(self, tokens: Tensor, memory: Tensor, memory_mask: Tensor | None = None) -> Tensor:
        return self.decode(tokens, memory, memory_mask).hidden

    def decode(self, tokens: Tensor, memory: Tensor, memory_mask: Tensor | None = None) -> DecoderOutput:
        """`forward`, with the attention of every step, and the doubly stochastic penalty if its weight is not 0."""
        order, rows, times, counts = _pack(tokens, self.pad_id)
        embedded = self.dropout(self.embedding(tokens[rows, times]))
        state = self.start(memory, memory_mask)
        state = state if order is None else state.select(order)
        hidden, context, attention = [], [], []
        for x, count in zip(self.from_token(embedded).split(counts), counts, strict=True):
            state, z = self._advance(x, state.first(count))
            hidden.append(state.hidden)
            context.append(z)
            attention.append(state.attention)
        output = self._output(embedded, torch.cat(hidden), torch.cat(context))
        weights = torch.cat([alpha for alpha in attention if alpha is not None])
        weights = weights.new_zeros(*tokens.shape, weights.shape[1]).index_put((rows, times), weights)
        output = output.new_zeros(*tokens.shape, output.shape[1]).index_put((rows, times), output)
        return DecoderOutput(output, weights, self._penalty(weights, memory_mask))

    def start(self, memory: Tensor, memory_mask: Tensor | None = None) -> RNNState:
        values = self.memory_dropout(self.memory_projection(memory))
        if memory_mask is None:
            mean = values.mean(dim=1)
        else:
            content = memory_mask[:, :, None].to(values.dtype)
            mean = (values * content).sum(dim=1) / content.sum(dim=1).clamp(min=1)
        hidden, *rest = self.initial(mean).tanh().split(values.shape[2], dim=1)
        return RNNState(hidden, rest[0] if rest else hidden, BeamMemory((self.key(values), values), memory_mask))

    def step(self, token: Tensor, state: DecoderState) -> tuple[Tensor, RNNState]:
        assert isinstance(state, RNNState)
        embedded = self.dropout(self.embedding(token))
        state, context = self._advance(self.from_token(embedded), state)
        return self.output_projection(self._output(embedded, state.hidden, context)), state

    def _advance(self, x: Tensor, state: RNNState) -> tuple[RNNState, Tensor]:
        """One step of the cell. `x`: the token's term of the gates, float (R, gates). Returns state and context."""
        query, beta, recurrent = self.from_hidden(state.hidden).split(self.widths, dim=1)
        alpha, context = self._attend(query, state.memory)
        if self.widths[1]:
            context = context * beta.sigmoid()
        x = x + self.from_context(context)
        hidden, cell = _gru(x, recurrent, state.hidden) if self.cell == "gru" else _lstm(x + recurrent, state.cell)
        return replace(state, hidden=hidden, cell=cell, attention=alpha), context

    def _attend(self, query: Tensor, memory: BeamMemory) -> tuple[Tensor, Tensor]:
        """Attention float (R, N) and context float (R, dim) for queries float (R, A)."""
        (keys, values), mask = memory.tensors, memory.mask
        scores = (keys[:, None] + memory.group(query)[:, :, None]).tanh() @ self.score.to(keys.dtype)
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None], torch.finfo(scores.dtype).min)
        alpha = scores.softmax(dim=-1)
        if mask is not None:
            alpha = alpha * mask[:, None]  # a row without content has a zero context
        return alpha.flatten(0, 1), (alpha @ values).flatten(0, 1)

    def _output(self, embedded: Tensor, hidden: Tensor, context: Tensor) -> Tensor:
        """The deep output (Pascanu et al. 2014), equation 7 of Xu et al. before its last product."""
        return self.dropout((embedded + self.deep_output(torch.cat([hidden, context], dim=1))).tanh())

    def _penalty(self, attention: Tensor, memory_mask: Tensor | None) -> Tensor | None:
        if not self.doubly_stochastic:
            return None
        lacking = (1 - attention.sum(dim=1)) ** 2
        if memory_mask is not None:
            lacking = lacking * memory_mask
        return self.doubly_stochastic * lacking.sum(dim=1).mean()


def _lstm(gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """h and c from the summed gates: input, forget, output, candidate."""
    gated, candidate = gates.split([3 * cell.shape[1], cell.shape[1]], dim=1)
    input_gate, forget_gate, output_gate = gated.sigmoid().chunk(3, dim=1)
    cell = forget_gate * cell + input_gate * candidate.tanh()
    return output_gate * cell.tanh(), cell


def _gru(x: Tensor, recurrent: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """h as hidden and cell state; gates reset, update, candidate as in torch.nn.GRU."""
    x_gates, x_candidate = x.split([2 * hidden.shape[1], hidden.shape[1]], dim=1)
    h_gates, h_candidate = recurrent.split([2 * hidden.shape[1], hidden.shape[1]], dim=1)
    reset, update = (x_gates + h_gates).sigmoid().chunk(2, dim=1)
    candidate = (x_candidate + reset * h_candidate).tanh()
    hidden = candidate + update * (hidden - candidate)
    return hidden, hidden


def _pack(tokens: Tensor, pad_id: int) -> tuple[Tensor | None, Tensor, Tensor, list[int]]:
    """Positions of the tokens before the trailing padding, ordered by step, longest captions first.

    Returns:
        order: int64 (B,), captions by decreasing length; None if no reordering is needed.
        rows, times: int64 (P,), row and column in `tokens` of each packed token.
        counts: number of captions in step 0, 1, ...; their sum is P.
    """
    size, length = tokens.shape
    steps = torch.arange(length, device=tokens.device)
    lengths = ((tokens != pad_id) * (steps + 1)).amax(dim=1).clamp(min=1)
    counts = (lengths[:, None] > steps).sum(dim=0).cpu()
    order = lengths.argsort(descending=True, stable=True)
    times, rows = (torch.arange(size)[None, :] < counts[:, None]).nonzero(as_tuple=True)
    times, rows = times.to(tokens.device), rows.to(tokens.device)
    sizes = [int(count) for count in counts if count > 0]
    ordered = sizes[-1] == size
    return (None if ordered else order), (rows if ordered else order[rows]), times, sizes
