"""The state of each kind of decoder as a list of tensors, so that its `start` and `step` are graphs.

Every tensor has the rows (captions) first. Those of the memory stay as they are from step to step; those of the past
change with every token.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from velm.decoders.base import Decoder, DecoderState
from velm.decoders.huggingface import HFDecoder, HFDecoderState
from velm.decoders.rnn import RNNDecoder, RNNState
from velm.decoders.transformer import TransformerDecoder, TransformerState
from velm.exports.towers import with_parts
from velm.layers.beam_memory import BeamMemory
from velm.layers.kv_cache import KVCache
from velm.model import VisionLanguageModel
from velm.outputs import EncoderOutput

__all__ = ["StartGraph", "StepGraph", "TensorState", "tensor_state"]


class TensorState(ABC):
    """How the state of a decoder becomes tensors and back.

    Attributes:
        decoder: in eval mode, without gradients.
        grows: the axis of a past tensor along which tokens are appended; None: none.
    """

    grows: int | None = None

    def __init__(self, decoder: Any) -> None:
        self.decoder = decoder

    @abstractmethod
    def start(self, memory: Tensor, mask: Tensor | None) -> tuple[list[Tensor], list[Tensor]]:
        """Tensors of the memory, without its mask, and of the past before the first token."""

    @abstractmethod
    def state(self, memory: list[Tensor], mask: Tensor | None, past: list[Tensor]) -> DecoderState:
        """The state that these tensors are."""

    @abstractmethod
    def past(self, state: Any) -> list[Tensor]:
        """The tensors of the past of a state."""

    def positions(self, number: int) -> int:
        """The axis of the memory's tensor `number` that counts its positions."""
        return 1

    @property
    def start_id(self) -> int | None:
        """The token that a caption begins with; None: bos."""
        return None


class _Transformer(TensorState):
    """Keys and values of the memory (R, heads, N, d); of the past (R, t, 2 D), by block.

    With an image_gate, the masks of text and image, bool (R, 2, N), stand behind those of the memory.
    """

    decoder: TransformerDecoder
    grows = 1

    def positions(self, number: int) -> int:
        return 2

    def start(self, memory: Tensor, mask: Tensor | None) -> tuple[list[Tensor], list[Tensor]]:
        read = self.decoder.start(memory, mask).memory
        tensors = [*read.tensors, read.mask] if self.decoder.image_gate and read.mask is not None else [*read.tensors]
        width = 2 * self.decoder.embedding.embedding_dim
        return tensors, [memory.new_zeros(memory.shape[0], 0, width) for _ in self.decoder.blocks]

    def state(self, memory: list[Tensor], mask: Tensor | None, past: list[Tensor]) -> TransformerState:
        caches = tuple(KVCache.whole(tensor.transpose(0, 1)) for tensor in past)
        if self.decoder.image_gate:
            *memory, mask = memory
        return TransformerState(self.decoder, BeamMemory(tuple(memory), mask), caches, past[0].shape[1])

    def past(self, state: TransformerState) -> list[Tensor]:
        return [cache.tensor.transpose(0, 1) for cache in state.past]


class _RNN(TensorState):
    """Keys (R, N, A) and values (R, N, D) of the memory; h and, of an LSTM, c (R, D) as the past."""

    decoder: RNNDecoder

    def start(self, memory: Tensor, mask: Tensor | None) -> tuple[list[Tensor], list[Tensor]]:
        state = self.decoder.start(memory, mask)
        return list(state.memory.tensors), self.past(state)

    def state(self, memory: list[Tensor], mask: Tensor | None, past: list[Tensor]) -> RNNState:
        return RNNState(past[0], past[-1], BeamMemory(tuple(memory), mask))

    def past(self, state: RNNState) -> list[Tensor]:
        return [state.hidden] if self.decoder.cell == "gru" else [state.hidden, state.cell]


class _HuggingFace(TensorState):
    """The projected memory (R, N, D), its keys and values by layer; keys and values (R, heads, t, d) as the past."""

    decoder: HFDecoder
    grows = 2

    def positions(self, number: int) -> int:
        return 1 if number == 0 else 2

    @property
    def start_id(self) -> int | None:
        return self.decoder.start_id

    def start(self, memory: Tensor, mask: Tensor | None) -> tuple[list[Tensor], list[Tensor]]:
        token = torch.zeros(memory.shape[0], dtype=torch.int64, device=memory.device)
        state = self.decoder.step(token, self.decoder.start(memory, mask))[1]
        own, of_memory = state.cache.self_attention_cache, state.cache.cross_attention_cache
        return [state.memory, *_tensors(of_memory)], [tensor[:, :, :0] for tensor in _tensors(own)]

    def state(self, memory: list[Tensor], mask: Tensor | None, past: list[Tensor]) -> HFDecoderState:
        from transformers import EncoderDecoderCache

        cache = EncoderDecoderCache(_cache(past), _cache(memory[1:]))
        cache.is_updated = dict.fromkeys(range(len(past) // 2), True)
        owners = torch.zeros(1, dtype=torch.int64)
        return HFDecoderState(cache, memory[0], self.decoder._long(mask), past[0].shape[2], owners)

    def past(self, state: HFDecoderState) -> list[Tensor]:
        return _tensors(state.cache.self_attention_cache)


_STATES: dict[type[Decoder], type[TensorState]] = {
    TransformerDecoder: _Transformer,
    RNNDecoder: _RNN,
    HFDecoder: _HuggingFace,
}


def tensor_state(decoder: Decoder) -> TensorState | None:
    """The form of a decoder; None: its state is more than tensors of a known form."""
    kind = _STATES.get(type(decoder))
    return None if kind is None else kind(decoder)


class StartGraph(nn.Module):
    """What the encoders give to the decoder, to the tensors of its state: `*memory, [mask], *past`.

    Takes the features of each source of the memory, float (B, N, D), and the mask bool (B, N) of the text.
    """

    def __init__(self, model: VisionLanguageModel, form: TensorState) -> None:
        super().__init__()
        self.model, self.form = with_parts(model, "memory_projections", "decoder"), form

    def forward(self, features: list[Tensor], masks: list[Tensor]) -> tuple[Tensor, ...]:
        memory, mask = self.memory(features, masks)
        tensors, past = self.form.start(memory, mask)
        return (*tensors, *([] if mask is None else [mask.clone()]), *past)

    def memory(self, features: list[Tensor], masks: list[Tensor]) -> tuple[Tensor, Tensor | None]:
        """The decoder's memory and its mask."""
        outputs = {
            source: EncoderOutput(each, each, masks[0] if source == "text" else None)
            for source, each in zip(self.model.memory_sources, features, strict=True)
        }
        return self.model.encoder_memory(outputs.get("image"), outputs.get("text"))


class StepGraph(nn.Module):
    """A token int64 (R,) and the tensors of a state, to logits float (R, V) and the tensors of the past."""

    def __init__(self, decoder: Decoder, form: TensorState) -> None:
        super().__init__()
        self.decoder, self.form = decoder, form

    def forward(
        self, token: Tensor, memory: list[Tensor], mask: list[Tensor], past: list[Tensor]
    ) -> tuple[Tensor, ...]:
        state = self.form.state(memory, mask[0] if mask else None, past)
        logits, after = self.decoder.step(token, state)
        return (logits, *self.form.past(after))


def _tensors(cache: Any) -> list[Tensor]:
    return [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]


def _cache(tensors: list[Tensor]) -> Any:
    from transformers import DynamicCache

    cache = DynamicCache()
    for number in range(len(tensors) // 2):
        cache.update(tensors[2 * number], tensors[2 * number + 1], number)
    return cache
