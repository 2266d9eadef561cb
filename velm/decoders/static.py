"""A Transformer decoder that steps in place: room for a whole sentence from the start, so that a step is one graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from velm.decoders.base import Decoder, DecoderState
from velm.decoders.transformer import TransformerDecoder, TransformerState
from velm.layers.beam_memory import Shared
from velm.outputs import DecoderOutput

__all__ = ["StaticDecoder"]


@dataclass(frozen=True)
class StaticState(DecoderState):
    """Keys and values of everything seen so far, and room for what is to come.

    A step writes into `past`: of a state that has been stepped on, only the state that came of it may be stepped.

    Attributes:
        decoder: whose state it is.
        memory: keys and values of the memory for each block that looks at it, the lowest first.
        past: float (depth, 2, R, heads, length, D / heads).
        place: int64 (1,), tokens fed.
        length: the same as a number.
        query: float (R, 1, D), what the last block asked the memory in the last step; None before the first.
    """

    decoder: TransformerDecoder
    memory: Shared
    past: Tensor
    place: Tensor
    length: int = 0
    query: Tensor | None = None

    @property
    def attention(self) -> Tensor | None:  # type: ignore[override]
        """float (R, N) of the last block, averaged over heads."""
        return self.decoder.weights(TransformerState(self.decoder, self.memory, query=self.query))

    def select(self, rows: Tensor) -> StaticState:
        query = None if self.query is None else self.query.index_select(0, rows)
        return replace(self, memory=self.memory.select(rows), past=self.past.index_select(2, rows), query=query)


class StaticDecoder(Decoder):
    """A TransformerDecoder whose step has the same shapes at every place, compiled.

    Writes what the decoder itself writes; no gradient comes of stepping. Meant for a GPU, where a step is many small
    kernels to launch; on a CPU it is slower than the decoder itself, whose time goes into matrix products. The first
    step of a shape compiles, which takes seconds to minutes: greedy search has one shape, beam search two; sentences
    that leave the batch make the number of rows a variable, once.

    Args:
        decoder: shares its weights.
        length: longest sequence in tokens, bos included; room for it is reserved. Never more than the decoder's own.
        backend: of torch.compile; None: not compiled.
    """

    max_length: int

    def __init__(
        self, decoder: TransformerDecoder, *, length: int, backend: str | Callable[..., Any] | None = "inductor"
    ) -> None:
        super().__init__()
        if length < 1:
            raise ValueError(f"length {length} is too small; there is room for at least 1 token.")
        self.decoder, self.output_projection = decoder, decoder.output_projection
        self.max_length = min(length, decoder.max_length)
        self._run = self._in_place
        if backend is not None:
            self._run = torch.compile(self._in_place, fullgraph=True, backend=backend)

    def forward(self, tokens: Tensor, memory: Tensor, memory_mask: Tensor | None = None) -> Tensor:
        return self.decoder(tokens, memory, memory_mask)

    def decode(self, tokens: Tensor, memory: Tensor, memory_mask: Tensor | None = None) -> DecoderOutput:
        return self.decoder.decode(tokens, memory, memory_mask)

    def start(self, memory: Tensor, memory_mask: Tensor | None = None) -> StaticState:
        shared = self.decoder.start(memory, memory_mask).memory
        keys = shared.tensors[0]  # (B, heads, N, D / heads)
        rows, heads, _, width = keys.shape
        past = keys.new_zeros(len(self.decoder.blocks), 2, rows, heads, self.max_length, width)
        return StaticState(self.decoder, shared, past, torch.zeros(1, dtype=torch.int64, device=keys.device))

    @torch.no_grad()
    def step(self, token: Tensor, state: DecoderState) -> tuple[Tensor, StaticState]:
        assert isinstance(state, StaticState)
        if state.length >= self.max_length:
            raise ValueError(f"{state.length + 1} tokens, but there is room for length {self.max_length} only.")
        logits, query = self._run(token.contiguous(), state.place, state.past, state.memory)
        return logits, replace(state, place=state.place + 1, length=state.length + 1, query=query)

    def _in_place(self, token: Tensor, place: Tensor, past: Tensor, memory: Shared) -> tuple[Tensor, Tensor]:
        """Logits float (R, V) and the last block's query float (R, 1, D); the token's keys go into `past`."""
        decoder = self.decoder
        x = query = decoder.embedding(token[:, None]) + decoder.positions.weight[place]
        seen = (torch.arange(past.shape[4], device=place.device) <= place).expand(len(token), -1)
        for index, block in enumerate(decoder._layers()):
            normed = block.attention_norm(x)
            keys, values = past[index, 0], past[index, 1]
            for room, new in zip((keys, values), block.attention.keys_values(normed), strict=True):
                room.index_copy_(2, place, new)
            x = x + block.attention.attend(normed, (keys, values), mask=seen)
            if index >= decoder.unimodal_depth:
                query, grouped = x, memory.group(x[:, 0])
                x = block.look(grouped, decoder.keys_values(memory, index), memory.mask).flatten(0, 1)[:, None]
            x = block.think(x)
        return decoder.output_projection(decoder.norm(x[:, 0])), query
