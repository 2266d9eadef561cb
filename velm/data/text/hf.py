"""Pretrained tokenizers from the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from velm.data.text.base import Tokenizer
from velm.data.text.cleaning import clean_text, require_cleaning
from velm.data.text.parts import PartsEncoder

__all__ = ["HFTokenizer"]


class HFTokenizer(Tokenizer):
    """A fast tokenizer from the Hugging Face hub or a local folder, with its own ids.

    cls and sep replace a missing bos and eos. A special token that is missing, or shares its id with another (CLIP
    pads with eos, GPT-2 uses one token for bos and eos), gets a new id above the largest.

    Args:
        model_name: hub id ("bert-base-uncased"), local folder, or a GGUF file in either; set by the registry name
            `hf/<model_name>`.
        clean: of text before it is tokenized, see `velm.data.text.cleaning.clean_text`; null: only the tokenizer's own.
        eos: the special token that ends a text, where the tokenizer's own eos does not, as '<end_of_turn>' in a chat.

    Attributes:
        padded_with: id that the tokenizer itself pads with, which may be that of eos; None: it has none.
        longest: the length in tokens that the tokenizer itself cuts texts to; None: it names none.
        starts_with: id that the tokenizer itself begins a text with, such as NLLB's code of the language; None: none.

    Raises:
        ValueError: there is no such tokenizer, or only one that runs Python.
    """

    _parts: PartsEncoder | None
    _library: Any
    _backend: Any

    def __init__(self, *, model_name: str, clean: str | None = None, eos: str | None = None) -> None:
        from tokenizers import decoders
        from transformers import AutoTokenizer

        from velm.pretrained import hub  # here: it imports torch, which `from_state` does not need

        require_cleaning(clean)
        try:
            name, gguf = hub.split_gguf(model_name)
            pretrained = AutoTokenizer.from_pretrained(name, **gguf)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"No tokenizer could be loaded from {model_name!r}: it is neither a folder with a tokenizer nor a "
                f"reachable hub id. Cause: {str(error).splitlines()[0]}"
            ) from error
        backend = getattr(pretrained, "backend_tokenizer", None)
        if backend is None and type(pretrained).__name__ == "SiglipTokenizer":
            from velm.data.text.sentencepiece import siglip_tokenizer

            backend = siglip_tokenizer(pretrained)
        if backend is None:
            raise ValueError(
                f"{model_name!r} has only a tokenizer that runs Python; VELM needs a fast one (tokenizer.json)."
            )
        suffix = getattr(backend.model, "end_of_word_suffix", None)
        if suffix:  # CLIP's, of which transformers makes blanks in Python
            backend.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace(suffix, " ")])
        special = {
            "pad": pretrained.pad_token_id,
            "bos": _first(pretrained.bos_token_id, pretrained.cls_token_id),
            "eos": _first(pretrained.eos_token_id, pretrained.sep_token_id) if eos is None else _id_of(eos, backend),
            "unk": pretrained.unk_token_id,
        }
        size = max(backend.get_vocab(with_added_tokens=True).values()) + 1
        self._set(model_name, backend.to_str(), *_distinct(special, size), clean, _chat_of(pretrained))
        self.padded_with: int | None = pretrained.pad_token_id
        length = pretrained.model_max_length
        self.longest: int | None = int(length) if length < 1_000_000 else None  # transformers writes 1e30 for none
        empty = pretrained("").input_ids
        self.starts_with: int | None = empty[0] if len(empty) > 1 else None
        if empty and empty[0] == pretrained.bos_token_id:
            self.start_text = pretrained.bos_token

    @property
    def vocab_size(self) -> int:
        return self._size

    def to_ids(self, text: str) -> list[int]:
        if self._clean is not None:
            text = clean_text(text, self._clean)
        return self._backend.encode(text, add_special_tokens=False).ids

    def to_text(self, ids: list[int]) -> str:
        known = [i for i in ids if self._backend.id_to_token(i) is not None]
        return self._backend.decode(known, skip_special_tokens=False).strip()

    def vocabulary(self) -> dict[str, int]:
        tokens: dict[str, int] = self._backend.get_vocab(with_added_tokens=True)
        special = {self.pad_id, self.bos_id, self.eos_id, self.unk_id}
        return {token: number for token, number in tokens.items() if number not in special}

    def state(self) -> dict[str, Any]:
        special = {"pad": self.pad_id, "bos": self.bos_id, "eos": self.eos_id, "unk": self.unk_id}
        state = {"model_name": self.model_name, "backend": self._json, "special": special, "size": self._size}
        added = {"clean": self._clean, "chat": self._chat, "start": self.start_text}
        return state | {name: value for name, value in added.items() if value is not None}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> HFTokenizer:
        tokenizer = cls.__new__(cls)  # the constructor needs the hub
        require_cleaning(state.get("clean"))
        names = ("model_name", "backend", "special", "size", "clean", "chat")
        tokenizer._set(*[state.get(name) for name in names])  # type: ignore[arg-type]
        tokenizer.start_text = state.get("start")
        return tokenizer

    def to_ids_of_parts(self, parts: Sequence[str | None]) -> list[list[int]]:
        if self._parts is None:
            self._parts = PartsEncoder(self._backend)
        clean = self._clean
        return self._parts([part if part is None or clean is None else clean_text(part, clean) for part in parts])

    def render_chat(self, messages: Sequence[dict[str, str]], *, prompt: bool) -> str:
        if self._chat is None:
            return super().render_chat(messages, prompt=prompt)
        if self._library is None:  # once: it copies the backend
            from transformers import PreTrainedTokenizerFast

            self._library = PreTrainedTokenizerFast(tokenizer_object=self._backend, **self._chat["tokens"])
        template = self._chat["template"]
        return str(
            self._library.apply_chat_template(
                list(messages), chat_template=template, tokenize=False, add_generation_prompt=prompt
            )
        )

    def _set(
        self, model_name: str, backend: str, special: dict[str, int], size: int, clean: str | None,
        chat: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        from tokenizers import Tokenizer

        self._clean, self._chat = clean, chat
        self._parts, self._library = None, None
        self.model_name, self._json, self._size = model_name, backend, size
        self.pad_id, self.bos_id, self.eos_id, self.unk_id = (special[k] for k in ("pad", "bos", "eos", "unk"))
        self._backend = Tokenizer.from_str(backend)
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = True  # '[SEP]' in a caption is text
        added = self._backend.get_added_tokens_decoder().values()
        self.special_texts = tuple(token.content for token in added if token.special)
        self.bos_text, self.eos_text = (self._backend.id_to_token(i) for i in (self.bos_id, self.eos_id))


def _id_of(token: str, backend: Any) -> int:
    number: int | None = backend.token_to_id(token)
    if number is None:
        raise ValueError(f"eos is {token!r}, and the tokenizer has no such token.")
    return number


def _chat_of(pretrained: Any) -> dict[str, Any] | None:
    """The chat template of a tokenizer of transformers and the special tokens that it names."""
    template = pretrained.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if template is None:
        return None
    tokens = {name: token for name, token in pretrained.special_tokens_map.items() if isinstance(token, str)}
    return {"template": template, "tokens": tokens}


def _first(*ids: int | None) -> int | None:
    return next((i for i in ids if i is not None), None)


def _distinct(special: dict[str, int | None], size: int) -> tuple[dict[str, int], int]:
    """Give each special token its own id; eos keeps a shared id, since models were trained to stop at it."""
    result: dict[str, int] = {}
    for name in ("eos", "bos", "pad", "unk"):
        own = special[name]
        if own is None or own in result.values():
            own, size = size, size + 1
        result[name] = own
    return result, size
