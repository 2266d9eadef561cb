"""A Transformer decoder: causal self-attention, cross-attention over the memory, KV caches for both."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from velm.decoders.base import Decoder, DecoderState
from velm.layers.alternating import AlternatingBlock
from velm.layers.attention import KeysValues
from velm.layers.beam_memory import BeamMemory
from velm.layers.gated import GatedBlock, memory_masks
from velm.layers.kv_cache import KVCache
from velm.layers.positions import LearnedPositions
from velm.layers.transformer import Activation, TransformerBlock
from velm.outputs import DecoderOutput


@dataclass(frozen=True)
class TransformerState(DecoderState):
    """Keys and values of the memory and of the tokens so far.

    Attributes:
        decoder: the decoder of this state.
        memory: keys and values of the memory for each block with cross-attention, the lowest first.
        past: for each block, keys and values of the tokens fed, (t, R, 2 * D).
        length: tokens fed, t.
        query: float (R, 1, D), input of the last block's cross-attention in the last step; None before the first.
    """

    decoder: TransformerDecoder
    memory: BeamMemory
    past: tuple[KVCache, ...] = ()
    length: int = 0
    query: Tensor | None = None

    @property
    def attention(self) -> Tensor | None:  # type: ignore[override]
        """float (R, N), weights of the last block, averaged over heads; computed when read."""
        return self.decoder.weights(self)

    def select(self, rows: Tensor) -> TransformerState:
        past = tuple(block.select(rows) for block in self.past)
        query = None if self.query is None else self.query.index_select(0, rows)
        return replace(self, memory=self.memory.select(rows), past=past, query=query)


class TransformerDecoder(Decoder):
    """Pre-norm Transformer decoder (Vaswani et al. 2017) with learned positions.

    Args:
        vocab_size: number of tokens.
        pad_id: the padding token; padding follows the caption, where the causal mask hides it.
        memory_dim: width of the memory.
        dim: width.
        depth: number of blocks.
        unimodal_depth: number of blocks, from the lowest, without cross-attention; the others have it (CoCa, Yu et al.
            2022, arXiv 2205.01917, section 3.2: half of them). A text encoder may share the unimodal blocks.
        heads: attention heads of a block; divides `dim`.
        mlp_ratio: hidden width of the MLP as a multiple of `dim`.
        dropout: probability, on the embeddings and on the output of each branch of a block.
        max_length: longest sequence, in tokens, bos included.
        tie_embeddings: the output projection's weight is the token embedding (Press and Wolf 2017).
        alternating: behind the unimodal blocks, blocks of self-attention and of cross-attention alternate, each with an
            MLP and the latter with a norm of the memory, as in open_clip's CoCa; see `AlternatingBlock`.
        image_gate: behind the unimodal blocks, an attention over the text and one over the image, which is scaled by a
            gate that is 0 at first; for a memory of both. See `GatedBlock`.
        activation: of the MLPs: gelu, quick_gelu (OpenAI's CLIP) or gelu_tanh.
    """

    max_length: int

    def __init__(
        self,
        *,
        vocab_size: int,
        memory_dim: int,
        pad_id: int = 0,
        dim: int = 256,
        depth: int = 4,
        unimodal_depth: int = 0,
        heads: int = 4,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        max_length: int = 128,
        tie_embeddings: bool = True,
        alternating: bool = False,
        image_gate: bool = False,
        activation: Activation = "gelu",
    ) -> None:
        super().__init__()
        if depth < 1:
            raise ValueError(f"depth {depth} is too small; a Transformer decoder has at least 1 block.")
        if not 0 <= unimodal_depth < depth:
            raise ValueError(
                f"unimodal_depth {unimodal_depth} does not go with depth {depth}: it is at least 0 and at most "
                f"{depth - 1}, so that the last block attends over the memory."
            )
        if image_gate and alternating:
            raise ValueError("image_gate does not go with alternating: set one of them to false.")
        self.max_length, self.unimodal_depth, self.image_gate = max_length, unimodal_depth, image_gate
        self.words_dim = dim if unimodal_depth else None
        self.embedding = nn.Embedding(vocab_size, dim, padding_idx=pad_id)
        self.positions = LearnedPositions(dim, max_length)
        self.memory_norm: nn.Module = nn.Identity() if alternating else nn.LayerNorm(memory_dim)
        self.dropout = nn.Dropout(dropout)
        options: dict[str, Any] = {"heads": heads, "mlp_ratio": mlp_ratio, "dropout": dropout, "activation": activation}
        multimodal = AlternatingBlock if alternating else GatedBlock if image_gate else TransformerBlock
        self.blocks = nn.ModuleList(
            TransformerBlock(dim, **options)
            if block < unimodal_depth
            else multimodal(dim, memory_dim=memory_dim, **options)
            for block in range(depth)
        )
        self.norm = nn.LayerNorm(dim)
        self.output_projection = nn.Linear(dim, vocab_size)
        nn.init.normal_(self.embedding.weight, std=dim**-0.5)
        nn.init.zeros_(self.output_projection.bias)
        if tie_embeddings:
            self.output_projection.weight = self.embedding.weight

    def forward(
        self, tokens: Tensor, memory: Tensor, memory_mask: Tensor | None = None, words: Tensor | None = None
    ) -> Tensor:
        memory, memory_mask = self._read_memory(memory, memory_mask)
        x = self._all_but_last(self.read_words(tokens) if words is None else words, memory, memory_mask)
        return self.norm(self._layers()[-1](x, causal=True, memory=memory, memory_mask=memory_mask))

    def decode(
        self, tokens: Tensor, memory: Tensor, memory_mask: Tensor | None = None, words: Tensor | None = None
    ) -> DecoderOutput:
        """`forward`, with the last block's attention averaged over heads unless training.

        Args:
            tokens, memory, memory_mask: as of `forward`.
            words: float (B, T, dim), output of `read_words(tokens)`; None: computed here.
        """
        if self.training:
            return DecoderOutput(self(tokens, memory, memory_mask, words))
        memory, memory_mask = self._read_memory(memory, memory_mask)
        last = self._layers()[-1]
        words = self.read_words(tokens) if words is None else words
        query = last.self_attend(self._all_but_last(words, memory, memory_mask), causal=True)
        keys_values = last.memory_keys_values(memory)
        x = last.feed_forward(last.cross_attend(query, keys_values, memory_mask))
        return DecoderOutput(self.norm(x), last.weights(query, keys_values, memory_mask))

    def read_words(self, tokens: Tensor, appended: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Output of the lowest `unimodal_depth` blocks, before the final norm: float (B, T, dim).

        Args:
            tokens: int64 (B, T).
            appended: float (dim,), a vector that stands behind the tokens of every row; the output is (B, T + 1, dim).
            mask: bool (B, T) or (B, T + 1), True on positions that the later ones see; None: all.
        """
        x = self._embed(tokens)
        if appended is not None:
            x = torch.cat([x, appended.to(x.dtype).expand(x.shape[0], 1, -1)], dim=1)
        for block in self._layers()[: self.unimodal_depth]:
            x = block(x, mask=mask, causal=True)
        return x

    def start(self, memory: Tensor, memory_mask: Tensor | None = None) -> TransformerState:
        memory, memory_mask = self._read_memory(memory, memory_mask)
        blocks = self._layers()[self.unimodal_depth :]
        keys_values = [tensor for block in blocks for tensor in block.memory_keys_values(memory)]
        keys_values = [tensor.contiguous() for tensor in keys_values]  # read at every step: 1/8 faster over 255 tokens
        return TransformerState(self, BeamMemory(tuple(keys_values), memory_mask))

    def step(self, token: Tensor, state: DecoderState) -> tuple[Tensor, TransformerState]:
        assert isinstance(state, TransformerState)
        x = query = self._embed(token[:, None], start=state.length)
        past = []
        for index, block in enumerate(self._layers()):
            x, cache = block.self_attend_step(x, state.past[index] if state.past else None)
            past.append(cache)
            if index >= self.unimodal_depth:
                query, grouped = x, state.memory.group(x[:, 0])  # the beams of one image are queries of one memory
                attended = block.cross_attend(grouped, self.keys_values(state.memory, index), state.memory.mask)
                x = attended.flatten(0, 1)[:, None]
            x = block.feed_forward(x)
        logits = self.output_projection(self.norm(x[:, 0]))
        return logits, replace(state, past=tuple(past), length=state.length + 1, query=query)

    def weights(self, state: TransformerState) -> Tensor | None:
        """Attention weights of the last block in the last step, float (R, N); None before the first step."""
        if state.query is None:
            return None
        keys_values = self.keys_values(state.memory, len(self.blocks) - 1)
        grouped = state.memory.group(state.query[:, 0])
        return self._layers()[-1].weights(grouped, keys_values, state.memory.mask).flatten(0, 1)

    def keys_values(self, memory: BeamMemory, block: int) -> KeysValues:
        """Keys and values of one block; `memory` holds them from block `unimodal_depth` on."""
        index = 2 * (block - self.unimodal_depth)
        return memory.tensors[index], memory.tensors[index + 1]

    def _read_memory(self, memory: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The memory after its norm, and the mask that the blocks take."""
        if not self.image_gate:
            return self.memory_norm(memory), mask
        image = memory[..., -1:]
        memory = torch.cat([self.memory_norm(memory[..., :-1]), image], dim=-1)
        return memory, memory_masks(image[..., 0] > 0, mask)

    def _layers(self) -> list[TransformerBlock]:
        return cast("list[TransformerBlock]", list(self.blocks))

    def _all_but_last(self, words: Tensor, memory: Tensor, memory_mask: Tensor | None) -> Tensor:
        """The input of the last block, float (B, T, dim)."""
        x = words
        for block in self._layers()[self.unimodal_depth : -1]:
            x = block(x, causal=True, memory=memory, memory_mask=memory_mask)
        return x

    def _embed(self, tokens: Tensor, start: int = 0) -> Tensor:
        embedded = self.embedding(tokens)
        return self.dropout(embedded + self.positions(embedded, start))
