"""Decode with a fixed-size KV cache, so that torch.compile makes one graph of every decoding step.

Meant for a GPU, where a step launches many small kernels; on a CPU it is slower than the decoder itself. Use:

    import velm
    from compiled_decoding import StaticDecoder

    pipeline = velm.load("best.ckpt", device="cuda")
    pipeline.model.decoder = StaticDecoder(pipeline.model.decoder, length=32)  # tokens, bos included
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from velm.decoders.base import Decoder, DecoderState
from velm.decoders.transformer import TransformerDecoder, TransformerState
from velm.layers.beam_memory import BeamMemory
from velm.outputs import DecoderOutput

__all__ = ["StaticDecoder"]


@dataclass(frozen=True)
class StaticState(DecoderState):
    """Keys and values of the tokens so far, in buffers for a whole sequence.

    A step writes into `past` in place: only the newest state of a sequence may be stepped.

    Attributes:
        decoder: the decoder of this state.
        memory: keys and values of the memory for each block with cross-attention, the lowest first.
        past: float (depth, 2, R, heads, length, D / heads).
        position: int64 (1,), number of tokens fed.
        length: the same as a number.
        query: float (R, 1, D), input of the last block's cross-attention in the last step; None before the first.
    """

    decoder: TransformerDecoder
    memory: BeamMemory
    past: Tensor
    position: Tensor
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
    """A TransformerDecoder whose step has the same shapes at every position, compiled.

    Generates the same captions as the decoder; steps carry no gradient. The first step of a shape compiles, which takes
    seconds to minutes: greedy search has one shape, beam search two; finished captions that leave the batch make the
    number of rows dynamic, once.

    Args:
        decoder: the decoder to step; weights are shared.
        length: longest sequence in tokens, bos included; at most the decoder's own `max_length`.
        backend: of torch.compile; None: not compiled.
    """

    max_length: int

    def __init__(
        self, decoder: TransformerDecoder, *, length: int, backend: str | Callable[..., Any] | None = "inductor"
    ) -> None:
        super().__init__()
        if length < 1:
            raise ValueError(f"length {length} is too small; it is at least 1 token.")
        self.decoder, self.output_projection = decoder, decoder.output_projection
        self.max_length, self.image_gate = min(length, decoder.max_length), decoder.image_gate
        self._run = self._step
        if backend is not None:
            self._run = torch.compile(self._step, fullgraph=True, backend=backend)

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
            raise ValueError(f"{state.length + 1} tokens, but length is {self.max_length}.")
        logits, query = self._run(token.contiguous(), state.position, state.past, state.memory)
        return logits, replace(state, position=state.position + 1, length=state.length + 1, query=query)

    def _step(self, token: Tensor, position: Tensor, past: Tensor, memory: BeamMemory) -> tuple[Tensor, Tensor]:
        """Logits float (R, V) and the last block's query float (R, 1, D); the token's keys go into `past`."""
        decoder = self.decoder
        x = query = decoder.embedding(token[:, None]) + decoder.positions.weight[position]
        seen = (torch.arange(past.shape[4], device=position.device) <= position).expand(len(token), -1)
        for index, block in enumerate(decoder._layers()):
            normed = block.attention_norm(x)
            keys, values = past[index, 0], past[index, 1]
            for buffer, new in zip((keys, values), block.attention.keys_values(normed), strict=True):
                buffer.index_copy_(2, position, new)
            x = x + block.attention.attend(normed, (keys, values), mask=seen)
            if index >= decoder.unimodal_depth:
                query, grouped = x, memory.group(x[:, 0])
                x = block.cross_attend(grouped, decoder.keys_values(memory, index), memory.mask).flatten(0, 1)[:, None]
            x = block.feed_forward(x)
        return decoder.output_projection(decoder.norm(x[:, 0])), query
