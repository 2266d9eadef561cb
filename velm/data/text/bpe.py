"""Tokenizers over UTF-8 bytes: byte-pair encoding, and one id per byte."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from velm.data.text.base import SPECIALS, Tokenizer
from velm.data.text.parts import PartsEncoder

__all__ = ["BPETokenizer", "ByteTokenizer"]


class BPETokenizer(Tokenizer):
    """Byte-level byte-pair encoding (Sennrich et al. 2016; bytes as in GPT-2); has no unknown tokens.

    Decoding restores the text except for case (if `lowercase`) and runs of white space.

    Args:
        vocab_size: number of ids, the four special ones and the 256 bytes included; fewer if the training texts have
            too few pairs to merge.
        lowercase: convert text to lower case.
        min_frequency: minimum count of a pair to be merged, >= 1.
    """

    def __init__(self, *, vocab_size: int = 8192, lowercase: bool = True, min_frequency: int = 2) -> None:
        if vocab_size < len(SPECIALS) + 256:
            raise ValueError(
                f"vocab_size must be at least {len(SPECIALS) + 256} (256 bytes and {len(SPECIALS)} special "
                f"tokens), got {vocab_size}."
            )
        if min_frequency < 1:
            raise ValueError(f"min_frequency must be at least 1, got {min_frequency}.")
        self._options = {"vocab_size": vocab_size, "lowercase": lowercase, "min_frequency": min_frequency}
        self._backend: Any = None
        self._parts: PartsEncoder | None = None

    @property
    def vocab_size(self) -> int:
        """The requested size before training, the actual one after."""
        if self._backend is None:
            return int(self._options["vocab_size"])
        return len(SPECIALS) + self._backend.get_vocab_size()

    @property
    def trained(self) -> bool:
        return self._backend is not None

    def train(self, texts: Iterable[str]) -> None:
        from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

        backend = Tokenizer(models.BPE())
        steps = [normalizers.NFC()] + ([normalizers.Lowercase()] if self._options["lowercase"] else [])
        spaces = [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
        backend.normalizer = normalizers.Sequence(steps + spaces)
        # The prefix space gives a word the same token at the beginning of a text as elsewhere.
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=int(self._options["vocab_size"]) - len(SPECIALS),
            min_frequency=int(self._options["min_frequency"]),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        backend.train_from_iterator(texts, trainer)
        self._backend = backend

    def normalise(self, text: str) -> str:
        """`decode(encode(text))`."""
        self._require_trained()
        return self._backend.normalizer.normalize_str(text)

    def to_ids(self, text: str) -> list[int]:
        return [i + len(SPECIALS) for i in self._backend.encode(text).ids]

    def to_ids_of_parts(self, parts: Sequence[str | None]) -> list[list[int]]:
        self._require_trained()
        if self._parts is None:
            self._parts = PartsEncoder(self._backend)
        return [[i + len(SPECIALS) for i in each] for each in self._parts(parts)]

    def to_text(self, ids: list[int]) -> str:
        return self._backend.decode([i - len(SPECIALS) for i in ids]).strip()

    def vocabulary(self) -> dict[str, int]:
        tokens: dict[str, int] = self._backend.get_vocab() if self.trained else {}
        return {token: number + len(SPECIALS) for token, number in tokens.items()}

    def state(self) -> dict[str, Any]:
        return {"options": dict(self._options), "backend": self._backend.to_str() if self.trained else None}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> BPETokenizer:
        from tokenizers import Tokenizer

        tokenizer = cls(**state["options"])
        if state["backend"] is not None:
            tokenizer._backend = Tokenizer.from_str(state["backend"])
        return tokenizer


class ByteTokenizer(Tokenizer):
    """One id per UTF-8 byte; nothing to learn, lossless."""

    @property
    def vocab_size(self) -> int:
        return len(SPECIALS) + 256

    def to_ids(self, text: str) -> list[int]:
        return [byte + len(SPECIALS) for byte in text.encode("utf-8")]

    def to_text(self, ids: list[int]) -> str:
        return bytes(i - len(SPECIALS) for i in ids).decode("utf-8", errors="replace")

    def state(self) -> dict[str, Any]:
        return {}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> ByteTokenizer:
        return cls()
