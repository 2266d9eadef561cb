"""Word-level tokenizer with a vocabulary learned from the training captions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from velm.data.text.base import SPECIALS, Tokenizer

__all__ = ["WordTokenizer"]


class WordTokenizer(Tokenizer):
    """One id per word and per punctuation mark; unseen words map to unk.

    Words may contain apostrophes and hyphens ("dog's", "tri-colored"). `decode` returns normalised text: one space
    between words, none before . , : ; ? and !.

    Args:
        lowercase: convert text to lower case.
        min_frequency: minimum count of a word in the training texts, >= 1.
        max_size: maximum number of ids, the four special ones included; drops the rarest words. None: no limit.
    """

    _WORD = r"\w+(?:['’\-]\w+)*|[^\w\s]"
    _ASCII_WORD = re.compile(_WORD, re.ASCII)  # several times faster; differs from `tokenizers` beyond ASCII

    def __init__(self, *, lowercase: bool = True, min_frequency: int = 1, max_size: int | None = None) -> None:
        if min_frequency < 1:
            raise ValueError(f"min_frequency must be at least 1, got {min_frequency}.")
        if max_size is not None and max_size <= len(SPECIALS):
            raise ValueError(f"max_size must be above {len(SPECIALS)}, the special tokens, got {max_size}.")
        self.lowercase, self.min_frequency, self.max_size = lowercase, min_frequency, max_size
        self._words: list[str] = []

    @property
    def vocab_size(self) -> int:
        return len(SPECIALS) + len(self._words)

    @property
    def trained(self) -> bool:
        return bool(self._words)

    def train(self, texts: Iterable[str]) -> None:
        splitter = self._splitter()
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(self._ascii_words(text) if text.isascii() else _split(splitter, text))
        words = sorted((w for w, n in counts.items() if n >= self.min_frequency), key=lambda w: (-counts[w], w))
        if not words:
            raise ValueError(
                f"None of the {len(counts)} words in the training captions occurs min_frequency = "
                f"{self.min_frequency} times. Lower min_frequency or add captions."
            )
        self._build(words if self.max_size is None else words[: self.max_size - len(SPECIALS)])

    def normalise(self, text: str) -> str:
        """`decode(encode(text))` if every word is in the vocabulary."""
        return _join(_split(self._splitter(), text))

    def to_ids(self, text: str) -> list[int]:
        return self._backend.encode(text).ids

    def length(self, text: str) -> int:
        self._require_trained()
        return 2 + len(self._ASCII_WORD.findall(text)) if text.isascii() else super().length(text)

    def to_text(self, ids: list[int]) -> str:
        return _join([self._words[i - len(SPECIALS)] for i in ids])

    def vocabulary(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self._words, len(SPECIALS))}

    def state(self) -> dict[str, Any]:
        options = {"lowercase": self.lowercase, "min_frequency": self.min_frequency, "max_size": self.max_size}
        return {"options": options, "words": list(self._words)}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> WordTokenizer:
        tokenizer = cls(**state["options"])
        if state["words"]:
            tokenizer._build(list(state["words"]))
        return tokenizer

    def _ascii_words(self, text: str) -> list[str]:
        return self._ASCII_WORD.findall(text.lower() if self.lowercase else text)

    def _splitter(self, model: Any = None) -> Any:
        from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

        backend = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>") if model is None else model)
        steps = [normalizers.NFC()] + ([normalizers.Lowercase()] if self.lowercase else [])
        backend.normalizer = normalizers.Sequence(steps)
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(self._WORD), behavior="removed", invert=True)
        return backend

    def _build(self, words: list[str]) -> None:
        from tokenizers import models

        # Special tokens only reserve their ids here: the pattern splits '<eos>' into '<', 'eos' and '>'.
        vocab = {word: i for i, word in enumerate([*SPECIALS, *words])}
        self._words = words
        self._backend = self._splitter(models.WordLevel(vocab, unk_token="<unk>"))


def _split(backend: Any, text: str) -> list[str]:
    return [w for w, _ in backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(text))]


def _join(words: list[str]) -> str:
    return re.sub(r" ([.,:;?!])(?= |$)", r"\1", " ".join(words))
