"""`Decoder`, the contract of a decoder: memory and previous tokens in, logits of the next token out."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from velm.outputs import DecoderOutput
from velm.prompt import Prompt


class DecoderState(ABC):
    """State of a decoder between two calls of `step`; row b belongs to caption b.

    Attributes:
        attention: float (B, N), weights over the memory in the last step; None if the decoder does not provide them.
    """

    attention: Tensor | None = None

    @abstractmethod
    def select(self, rows: Tensor) -> DecoderState:
        """The state of the captions `rows`, int64 (R,), repeated and reordered as listed."""


class Decoder(nn.Module, ABC):
    """Generates a caption token by token with attention over a memory.

    A subclass sets `self.output_projection` (linear D' -> V) and implements `forward`, `start` and `step`.
    A constructor with an argument `vocab_size`, `pad_id` or `memory_dim` receives it from the builder.
    Law: multiplying `forward`'s hidden states by the output projection equals stepping token by token.
    `max_length` is the longest sequence in tokens, bos included; None: no limit.

    A decoder whose lowest blocks have no cross-attention (unimodal blocks, CoCa) may share them with alignment through
    `text_encoder: decoder`. It then sets `words_dim` to their output width W (None: no unimodal blocks) and has
    `read_words(tokens)`, causal, float (B, T, W), the output of those blocks, and an argument `words` of `decode` that
    takes this output in place of computing it. Law: passing `words` changes no hidden state that predicts a token, even
    if `words` was computed with eos where `tokens` hold padding.

        tokens ── read_words ── + ── decode(..., words=...) ── hidden
                                └─── text encoder ── pooled

    A decoder with a `template` (None: no prompts) reads a text around the image before it writes. It then has
    `read_prompt(memory, memory_mask, prompt)`, which gives a prefix float (B, P, D) and its mask; `decode`, `forward`
    and `start` take these as `memory` and `memory_mask`. The prompt's last position predicts the first token: bos is
    not read.

    A decoder with `image_gate`, which is an option of its constructor too, attends over image and text separately. Its
    memory has one channel more than `memory_dim`, the last: 1 on positions of the image, 0 on those of the text.

    A decoder with `shares_memory` has `decode_shared`, which a training step calls where samples share images.
    """

    output_projection: nn.Linear
    max_length: int | None = None
    words_dim: int | None = None
    template: str | None = None
    image_gate: bool = False

    @property
    def shares_memory(self) -> bool:
        """Whether it has `decode_shared`."""
        return False

    def read_prompt(self, memory: Tensor, memory_mask: Tensor | None, prompt: Prompt) -> tuple[Tensor, Tensor | None]:
        """The memory and the prompt around it as one prefix; of a decoder with a `template`."""
        raise NotImplementedError(f"{type(self).__name__} reads no prompts.")

    @abstractmethod
    def forward(self, tokens: Tensor, memory: Tensor, memory_mask: Tensor | None = None) -> Tensor:
        """Hidden states under teacher forcing.

        Args:
            tokens: int64 (B, T), from bos on, padded at the end.
            memory: float (B, N, memory_dim), or (B, N, memory_dim + 1) with `image_gate`.
            memory_mask: bool (B, N), True on content; None: all positions are content.

        Returns:
            hidden float (B, T, D'); position t has seen tokens 0 ... t and predicts t + 1.
        """

    def decode(self, tokens: Tensor, memory: Tensor, memory_mask: Tensor | None = None) -> DecoderOutput:
        """`forward` as a `DecoderOutput`; override to add attention or a penalty."""
        return DecoderOutput(self(tokens, memory, memory_mask))

    def decode_shared(
        self,
        tokens: Tensor,
        memory: Tensor,
        memory_mask: Tensor | None,
        rows: Tensor,
        most: int,
        prompt: Prompt | None = None,
    ) -> DecoderOutput:
        """`decode` of R texts of B memories, each of which is read once; of a decoder with `shares_memory`.

        Law: it equals `decode` with `memory[rows]`, or with `read_prompt` of it.

        Args:
            tokens: int64 (R, T).
            memory, memory_mask: of the B memories, without the prompt.
            rows: int64 (R,), the memory of each text.
            most: at least the number of texts of each memory.
            prompt: of the R texts, for a decoder with a `template`.
        """
        raise NotImplementedError(f"{type(self).__name__} reads a memory once for each text.")

    def attend(
        self, tokens: Tensor, memory: Tensor, memory_mask: Tensor | None = None, prompt: Prompt | None = None
    ) -> Tensor | None:
        """Where each predicted token looks, float (B, T, N), weights over the memory that sum to 1; None: not known.

        `decode().attention`, unless that is too expensive to compute in every forward pass.

        Args:
            tokens, memory, memory_mask: as of `forward`; the memory without the prompt.
            prompt: of a decoder with a `template`.
        """
        return self.decode(tokens, memory, memory_mask).attention

    @abstractmethod
    def start(self, memory: Tensor, memory_mask: Tensor | None = None) -> DecoderState:
        """The state before the first token, for B memories."""

    @abstractmethod
    def step(self, token: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """Feed one token per caption, int64 (B,); returns logits float (B, V) of the next one, and the new state.

        The caller may modify the logits.
        """
