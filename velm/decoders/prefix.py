"""`PrefixDecoder`: a causal language model that reads the memory as the beginning of its own sequence.

memory ── embed_prefix ──┐
tokens ── embed_tokens ──┴─ run, with a view ── hidden

            prefix  text           keys
prefix      1 1 1   0 0            bidirectional; causal: a triangle here, too
text        1 1 1   1 0
            1 1 1   1 1

Several texts of one memory may stand behind one prefix, see `velm.decoders.packed`.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from velm.decoders.base import Decoder, DecoderState
from velm.decoders.cache import appending, fork
from velm.decoders.packed import PackedTexts, pack, unpack
from velm.decoders.shared_prefix import RowOrder, SharedPrefix, SharedStep
from velm.decoders.views import Sequence, View
from velm.errors import ConfigError
from velm.outputs import DecoderOutput
from velm.prompt import Prompt, text_follows

__all__ = ["PrefixDecoder", "PrefixState"]


@dataclass(frozen=True)
class PrefixState(DecoderState):
    """Keys and values of the prefix and of the tokens so far.

    Attributes:
        cache: transformers' DynamicCache, as a value: of P + length positions, or with `shared` of the `length` tokens
            alone.
        mask: bool (B, P), True on the content of the prefix; None: all of it, or see `shared`.
        prefix: P.
        length: tokens fed so far.
        first: float (B, D'), the hidden state of the prompt's last position, until the first step; None: no prompt.
        shares: whether rows of the same memory may share its prefix.
        shared: the prefixes, once a memory has several rows; None: each row has its own in `cache`.
    """

    cache: Any
    mask: Tensor | None
    prefix: int
    length: int = 0
    first: Tensor | None = None
    shares: bool = False
    shared: SharedPrefix | None = None

    def select(self, rows: Tensor) -> PrefixState:
        if self.shares and self.shared is None and len(rows.unique()) < len(rows):
            return self._split().select(rows)
        mask = None if self.mask is None else self.mask.index_select(0, rows)
        first = None if self.first is None else self.first.index_select(0, rows)
        shared = None if self.shared is None else self.shared.select(rows)
        return replace(self, cache=fork(self.cache, rows), mask=mask, first=first, shared=shared)

    def _split(self) -> PrefixState:
        """The same with the prefixes apart from the text, so that rows can share them."""
        from transformers import DynamicCache

        text = DynamicCache()
        for number, layer in enumerate(self.cache.layers if self.length else ()):
            text.update(layer.keys[:, :, self.prefix :], layer.values[:, :, self.prefix :], number)
        return replace(self, cache=text, mask=None, shared=SharedPrefix.of(self.cache, self.prefix, self.mask))


class PrefixDecoder(Decoder):
    """Decodes behind a prefix made of the memory, which is computed once.

    A subclass implements `embed_prefix`, `embed_tokens` and `run`.

    Attributes:
        bidirectional: whether positions of the prefix see later ones of the prefix.
        takes_views: whether all attention of `run` goes by the view; the prefix is then held once for each memory.
    """

    bidirectional: bool = False
    takes_views: bool = False

    @abstractmethod
    def embed_prefix(self, memory: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The memory, float (B, N, memory_dim), as vectors float (B, P, D); and which of them are content.

        Args:
            memory: of the encoders.
            mask: bool (B, N), True on content; None: all of it.
        """

    @abstractmethod
    def embed_tokens(self, tokens: Tensor, past: int) -> Tensor:
        """Tokens int64 (B, T), the first of which is number `past` of the text, as vectors float (B, T, D)."""

    @abstractmethod
    def run(self, x: Tensor, view: View, cache: Any) -> Tensor:
        """The language model over vectors.

        Args:
            x: float (B, T, D).
            view: what each position sees, and its number.
            cache: of the positions before, extended in place by these; None: there are none, and nothing is kept.

        Returns:
            hidden float (B, T, D'); those before the `first` of a `Sequence` are not read.
        """

    def read_prompt(self, memory: Tensor, memory_mask: Tensor | None, prompt: Prompt) -> tuple[Tensor, Tensor | None]:
        image, mask = self.embed_prefix(memory, memory_mask)
        if mask is None:
            mask = torch.ones(image.shape[:2], dtype=torch.bool, device=image.device)
        before, after = (self.embed_tokens(tokens, 0).to(image.dtype) for tokens in (prompt.before, prompt.after))
        mask = torch.cat([prompt.before_mask, mask, prompt.after_mask], dim=1)
        return torch.cat([before, image, after], dim=1), mask

    def _prefix(self, memory: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        prefix, mask = self.embed_prefix(memory, mask) if self.template is None else (memory, mask)
        return prefix, _needed(mask)

    def forward(self, tokens: Tensor, memory: Tensor, memory_mask: Tensor | None = None) -> Tensor:
        self._check_length(tokens.shape[1])
        prefix, mask = self._prefix(memory, memory_mask)
        hidden = self.run(*self._whole(tokens, prefix, mask), None)
        return self._predicting(hidden, prefix.shape[1], mask)

    @property
    def shares_memory(self) -> bool:
        reads_ahead = self.bidirectional and self.template is not None  # the image sees what stands behind it
        return self.takes_views and text_follows(self.template) and not reads_ahead

    def decode_shared(
        self,
        tokens: Tensor,
        memory: Tensor,
        memory_mask: Tensor | None,
        rows: Tensor,
        most: int,
        prompt: Prompt | None = None,
    ) -> DecoderOutput:
        self._check_length(tokens.shape[1])
        order = RowOrder.by_memory(rows, len(memory), most)
        prefix, mask = self._common(memory, memory_mask, prompt, order.rows[::most])
        read_from = self._first(prefix.shape[1], mask)
        own = self.embed_tokens(tokens if prompt is None else tokens[:, 1:], 0).to(prefix.dtype)
        content = torch.ones(own.shape[:2], dtype=torch.bool, device=own.device)
        if prompt is not None:
            own = torch.cat([self.embed_tokens(prompt.after, 0).to(own.dtype), own], dim=1)
            content = torch.cat([prompt.after_mask, content], dim=1)
        length, (count, longest) = prefix.shape[1], own.shape[:2]
        if mask is None and prompt is None and count == len(order.rows):
            seen = None  # all of it is content
        else:
            mask = torch.ones(prefix.shape[:2], dtype=torch.bool, device=own.device) if mask is None else mask
            seen = torch.cat([mask, pack(content, order, len(memory))], dim=1)
        both = length if self.bidirectional else 0
        view = PackedTexts(length + longest, 0, own.device, both, seen, read_from, prefix=length, texts=most)
        hidden = self.run(torch.cat([prefix, pack(own, order, len(memory))], dim=1), view, None)
        written = unpack(hidden[:, length:], order)
        if prompt is None:
            return DecoderOutput(written)
        first, read = _last(hidden[:, :length], mask)[rows], prompt.after.shape[1]
        if read:
            of_text = _last(written[:, :read], prompt.after_mask)
            first = torch.where(prompt.after_mask.any(dim=1, keepdim=True), of_text, first)
        return DecoderOutput(torch.cat([first[:, None], written[:, read:]], dim=1))

    def _common(
        self, memory: Tensor, mask: Tensor | None, prompt: Prompt | None, rows: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """What the texts of a memory have in common; `rows` int64 (B,) is one text of each."""
        if prompt is None:
            prefix, mask = self.embed_prefix(memory, mask)
        else:
            prompt = prompt.select(rows)
            prompt = replace(prompt, after=prompt.after[:, :0], after_mask=prompt.after_mask[:, :0])
            prefix, mask = self.read_prompt(memory, mask, prompt)
        return prefix, _needed(mask)

    def _whole(self, tokens: Tensor, prefix: Tensor, mask: Tensor | None) -> tuple[Tensor, Sequence]:
        """A prefix and the tokens behind it, and what they see; behind a prompt bos is not read."""
        read = tokens if self.template is None else tokens[:, 1:]
        x = torch.cat([prefix, self.embed_tokens(read, 0)], dim=1)
        return x, self._view(x, prefix.shape[1], mask, self._first(prefix.shape[1], mask))

    def _first(self, length: int, mask: Tensor | None) -> int:
        """The first position whose hidden state predicts a token, behind a prefix of that length; 0: not known."""
        if self.template is None:
            return length
        return length - 1 if mask is None or mask[:, -1].all() else 0

    def _predicting(self, x: Tensor, length: int, mask: Tensor | None) -> Tensor:
        """Those positions of a sequence, float (B, length + ..., D), that predict tokens: float (B, T, D)."""
        if self.template is None:
            return x[:, length:]
        return torch.cat([_last(x[:, :length], mask)[:, None], x[:, length:]], dim=1)

    def start(self, memory: Tensor, memory_mask: Tensor | None = None) -> PrefixState:
        from transformers import DynamicCache

        cache, (prefix, mask) = DynamicCache(), self._prefix(memory, memory_mask)
        length = prefix.shape[1]
        hidden = self.run(prefix, self._view(prefix, length, mask), cache)
        first = None if self.template is None else _last(hidden, mask)
        return PrefixState(appending(cache), mask, length, first=first, shares=self.takes_views)

    def step(self, token: Tensor, state: DecoderState) -> tuple[Tensor, PrefixState]:
        assert isinstance(state, PrefixState)
        if state.first is not None:
            return self.output_projection(state.first), replace(state, first=None)
        self._check_length(state.length + 1)
        cache, x = fork(state.cache), self.embed_tokens(token[:, None], state.length)
        past = state.prefix + state.length
        view: View = Sequence(past + 1, past, x.device, content=state.mask)
        if state.shared is not None:
            view = SharedStep(state.shared, state.length)
        hidden = self.run(x, view, cache)
        return self.output_projection(hidden[:, -1]), replace(state, cache=cache, length=state.length + 1)

    def _view(self, x: Tensor, prefix: int, content: Tensor | None, first: int = 0) -> Sequence:
        """Of a whole sequence, of whose first `prefix` positions `content` (B, prefix) is seen."""
        return Sequence(x.shape[1], 0, x.device, prefix if self.bidirectional else 0, content, first)

    def _check_length(self, length: int) -> None:
        if self.max_length is not None and length > self.max_length:
            raise ConfigError(
                f"{length} tokens, but {type(self).__name__} holds {self.max_length}. Shorten the captions "
                f"(data.max_length), or raise max_position_embeddings in its config."
            )


def _needed(mask: Tensor | None) -> Tensor | None:
    """The mask, or None if all is content: attention without a mask is faster."""
    return None if mask is None or mask.all() else mask


def _last(hidden: Tensor, mask: Tensor | None) -> Tensor:
    """The last position of content of each row, float (B, D)."""
    if mask is None:
        return hidden[:, -1]
    places = torch.arange(mask.shape[1], device=mask.device)
    last = places.masked_fill(~mask, -1).argmax(dim=1)
    return hidden[torch.arange(len(hidden), device=hidden.device), last]
