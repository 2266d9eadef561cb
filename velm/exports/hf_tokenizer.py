"""VELM's tokenizers as fast tokenizers of transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from velm.data.text.base import Tokenizer
from velm.data.text.bpe import BPETokenizer, ByteTokenizer
from velm.data.text.hf import HFTokenizer
from velm.errors import ExportError
from velm.exports.requirements import refuse

__all__ = ["HubTokenizer", "hub_tokenizer", "published", "require_tokenizer"]


@dataclass(frozen=True)
class HubTokenizer:
    """A tokenizer of transformers in the making.

    Attributes:
        backend: of the package tokenizers, without a post-processor.
        rows: the id of VELM of each of its ids, in their order.
        bos, eos, pad, unk: texts of special tokens; None: the backend has no such token.
    """

    backend: Any
    rows: list[int]
    bos: str | None
    eos: str | None
    pad: str | None
    unk: str | None

    def id_of(self, token: str) -> int:
        return int(self.backend.token_to_id(token))

    def library_tokenizer(
        self, before: tuple[str, ...], after: tuple[str, ...], longest: int, pad: str, *inputs: str
    ) -> Any:
        """A `PreTrainedTokenizerFast` that adds the tokens `before` and `after` a text and cuts at `longest`.

        Args:
            inputs: of the model: "input_ids", "attention_mask".
        """
        from tokenizers.processors import TemplateProcessing
        from transformers import PreTrainedTokenizerFast

        special = [(token, self.id_of(token)) for token in dict.fromkeys((*before, *after))]
        single, pair = [*before, "$A", *after], [*before, "$A", "$B", *after]
        self.backend.post_processor = TemplateProcessing(single=single, pair=pair, special_tokens=special)
        names = {"bos_token": self.bos, "eos_token": self.eos, "pad_token": pad, "unk_token": self.unk}
        return PreTrainedTokenizerFast(
            tokenizer_object=self.backend,
            model_max_length=longest,
            padding_side="right",
            model_input_names=list(inputs),
            **names,
        )


def hub_tokenizer(tokenizer: Tokenizer) -> HubTokenizer:
    """The same tokenizer for transformers.

    Raises:
        ExportError: it runs Python of VELM, which tokenizer.json cannot hold.
    """
    if isinstance(tokenizer, HFTokenizer):
        if (clean := tokenizer.state().get("clean")) is not None:
            raise ExportError(
                f"its tokenizer cleans a text in Python (clean: {clean}), which tokenizer.json cannot hold"
            )
        return published(tokenizer)
    if isinstance(tokenizer, BPETokenizer | ByteTokenizer):
        return _own(tokenizer)
    raise ExportError(
        f"its tokenizer is {type(tokenizer).__name__}, which is Python and no tokenizer.json: train with "
        f"data.tokenizer bpe, byte or hf/<model>"
    )


def require_tokenizer(
    tokenizer: Tokenizer, cls: str, limits: list[str], check: Callable[[HubTokenizer], list[str]] = lambda _: []
) -> HubTokenizer:
    """The same tokenizer for transformers, for a class that can express the rest of a model.

    Args:
        limits: what the class cannot express of the rest.
        check: what it cannot express of a tokenizer.

    Raises:
        ExportError: there is a limit; the message names all.
    """
    try:
        found = hub_tokenizer(tokenizer)
        limits = limits + check(found)
    except ExportError as error:
        raise refuse(cls, [*limits, str(error)]) from error
    if limits:
        raise refuse(cls, limits)
    return found


def published(tokenizer: HFTokenizer) -> HubTokenizer:
    """The tokenizer of transformers that it was made of, without the cleaning of a text."""
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(tokenizer.state()["backend"])
    backend.no_truncation()
    backend.no_padding()
    size = max(backend.get_vocab(with_added_tokens=True).values()) + 1
    ids = (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.unk_id)
    bos, eos, pad, unk = (backend.id_to_token(number) if number < size else None for number in ids)
    return HubTokenizer(backend, list(range(size)), bos, eos, pad, unk)


def _own(tokenizer: BPETokenizer | ByteTokenizer) -> HubTokenizer:
    """Byte pairs first and special tokens last: CLIPModel takes an eos with the id 2 for a mark of old configs."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    state = tokenizer.state()
    if isinstance(tokenizer, ByteTokenizer):
        vocabulary = {letter: byte for byte, letter in enumerate(_letters())}
        backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.decoder = decoders.ByteLevel()
    else:
        backend = Tokenizer.from_str(json.dumps(json.loads(state["backend"])))
    count = backend.get_vocab_size()
    names = ("<|pad|>", "<|bos|>", "<|unk|>", "<|eos|>")
    backend.add_special_tokens([AddedToken(name, special=True) for name in names])
    if backend.get_vocab_size() != count + len(names):
        raise ExportError(f"its tokenizer has learnt one of {', '.join(names)} as a word")
    special = [tokenizer.pad_id, tokenizer.bos_id, tokenizer.unk_id, tokenizer.eos_id]
    rows = [number + 4 for number in range(count)] + special
    return HubTokenizer(backend, rows, names[1], names[3], names[0], names[2])


def _letters() -> list[str]:
    """The letter that stands for each byte in byte-level tokenizers, as GPT-2's."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]
