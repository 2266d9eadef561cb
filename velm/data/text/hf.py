"""Pretrained tokenizers from the Hugging Face hub."""

from __future__ import annotations

from typing import Any

from velm.data.text.base import Tokenizer

__all__ = ["HFTokenizer"]


class HFTokenizer(Tokenizer):
    """A fast tokenizer from the Hugging Face hub or a local folder, with its own ids.

    cls and sep replace a missing bos and eos. A special token that is missing, or shares its id with another (CLIP
    pads with eos, GPT-2 uses one token for bos and eos), gets a new id above the largest.

    Args:
        model_name: hub id ("bert-base-uncased") or local folder; set by the registry name `hf/<model_name>`.

    Raises:
        ValueError: there is no such tokenizer, or only a slow one.
    """

    def __init__(self, *, model_name: str) -> None:
        from transformers import AutoTokenizer

        try:
            pretrained = AutoTokenizer.from_pretrained(model_name)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"No tokenizer could be loaded from {model_name!r}: it is neither a folder with a tokenizer nor a "
                f"reachable hub id. Cause: {str(error).splitlines()[0]}"
            ) from error
        backend = getattr(pretrained, "backend_tokenizer", None)
        if backend is None:
            raise ValueError(f"{model_name!r} has only a slow tokenizer; VELM needs a fast one (tokenizer.json).")
        special = {
            "pad": pretrained.pad_token_id,
            "bos": _first(pretrained.bos_token_id, pretrained.cls_token_id),
            "eos": _first(pretrained.eos_token_id, pretrained.sep_token_id),
            "unk": pretrained.unk_token_id,
        }
        size = max(backend.get_vocab(with_added_tokens=True).values()) + 1
        self._set(model_name, backend.to_str(), *_distinct(special, size))

    @property
    def vocab_size(self) -> int:
        return self._size

    def to_ids(self, text: str) -> list[int]:
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
        return {"model_name": self.model_name, "backend": self._json, "special": special, "size": self._size}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> HFTokenizer:
        tokenizer = cls.__new__(cls)  # the constructor needs the hub
        tokenizer._set(state["model_name"], state["backend"], state["special"], state["size"])
        return tokenizer

    def _set(self, model_name: str, backend: str, special: dict[str, int], size: int) -> None:
        from tokenizers import Tokenizer

        self.model_name, self._json, self._size = model_name, backend, size
        self.pad_id, self.bos_id, self.eos_id, self.unk_id = (special[k] for k in ("pad", "bos", "eos", "unk"))
        self._backend = Tokenizer.from_str(backend)
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = True  # '[SEP]' in a caption is text


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
