"""The contract of a decoder: a memory and the words so far in, the next word out."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from velm.outputs import DecoderOutput

__all__ = ["Decoder", "DecoderState"]


class DecoderState(ABC):
    """What a decoder carries from one `step` to the next; row b belongs to sentence b.

    `attention`: float (B, N), where the last step looked; None if the decoder does not say.
    """

    attention: Tensor | None = None

    @abstractmethod
    def select(self, rows: Tensor) -> DecoderState:
        """The state of the sentences `rows` (int64 (R,)), repeated and reordered as they are listed."""


class Decoder(nn.Module, ABC):
    """Writes a sentence one token at a time while attending over a memory.

    A subclass sets `self.output_projection` (linear D' -> V) and implements `forward`, `start` and `step`.
    A constructor that has `vocab_size`, `pad_id` or `memory_dim` among its arguments is handed them.
    Law: multiplying `forward`'s hidden states by the output projection equals stepping token by token.
    `max_length` is the longest sequence (tokens, with bos) the decoder can hold; None where there is no limit.

    A decoder whose lowest part reads the words alone may share it with alignment (`text_encoder: decoder`; CoCa). It
    sets `words_dim` to the width W of what that part makes of them, None where there is no such part, and has two more:
    `read_words(tokens)`, causal, float (B, T, W), and an argument `words` of `decode` that takes what came of it. Law:
    handing `words` over changes no hidden state that predicts a word, even where they were read to the end and
    `tokens` hold padding in place of eos.

        tokens ── read_words ── + ── decode(..., words=...) ── hidden
                                └─── text encoder ── pooled
    """

    output_projection: nn.Linear
    max_length: int | None = None
    words_dim: int | None = None

    @abstractmethod
    def forward(self, tokens: Tensor, memory: Tensor, memory_mask: Tensor | None = None) -> Tensor:
        """Hidden states under teacher forcing.

        Args:
            tokens: int64 (B, T), from bos on, padded at the end.
            memory: float (B, N, memory_dim).
            memory_mask: bool (B, N), True where there is content; None when everywhere.

        Returns:
            hidden float (B, T, D'); position t has seen tokens 0 ... t and predicts t + 1.
        """

    def decode(self, tokens: Tensor, memory: Tensor, memory_mask: Tensor | None = None) -> DecoderOutput:
        """`forward` with what else came of it: override to hand out attention or a penalty."""
        return DecoderOutput(self(tokens, memory, memory_mask))

    @abstractmethod
    def start(self, memory: Tensor, memory_mask: Tensor | None = None) -> DecoderState:
        """The state before the first token, for B memories."""

    @abstractmethod
    def step(self, token: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """Feed one token (int64 (B,)) a sentence; logits float (B, V) of the next one, and the new state.

        The caller may write into the logits.
        """
