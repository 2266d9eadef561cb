"""Word-level tokenizer with a vocabulary learned from the training captions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache, cached_property, lru_cache
from typing import Any, Literal

import regex

from velm.data.text.base import SPECIALS, Tokenizer
from velm.segmentation import DICTIONARIES, EMOJI, UNSPACED, dictionary

__all__ = ["WordTokenizer"]

BLANK = " "
"""The token of a blank where none is implied: beside a character of a script without blanks."""

_MARKS = frozenset(".,:;?!")
_CJK_MARKS = r"\u3001-\u303F\uFE10-\uFE1F\uFE30-\uFE4F\uFF01-\uFF0F\uFF1A-\uFF20\uFF3B-\uFF40\uFF5B-\uFF65"
_UNSPACED = regex.compile(rf"[{UNSPACED}{_CJK_MARKS}]")
_CHAINED = regex.compile(rf"{EMOJI}|[—…‥]")  # no blank among themselves
_LETTER = rf"[[\w²³¹¼½¾]--[{UNSPACED}]]"
_TOKEN = rf"{EMOJI}|(?=[{UNSPACED}])\X|{_LETTER}+(?:['’\-׳״־]{_LETTER}+)*|(?=\S)\X"  # the last joiners are Hebrew


class WordTokenizer(Tokenizer):
    """One id per word and per punctuation mark; unseen words map to unk.

    Words may contain apostrophes, hyphens and combining marks ("dog's", "tri-colored", "कुत्ता"). An emoji of several
    code points is one word. Where a script has no blanks (Chinese, Japanese, Thai, Lao, Khmer, Myanmar), a word is a
    grapheme cluster, or what a dictionary says.

    `decode` returns normalised text: one space between words, none before . , : ; ? and !, none beside characters of
    scripts without blanks unless the text has one there, which is then a token of its own.

    Args:
        lowercase: convert text to lower case.
        min_frequency: minimum count of a word in the training texts, >= 1.
        max_size: maximum number of ids, the four special ones included; drops the rarest words. None: no limit.
        segment: 'auto': per grapheme cluster in scripts without blanks. 'jieba' (Chinese), 'mecab' (Japanese),
            'pythainlp' (Thai): as 'auto', but words of that language by a dictionary; pip install 'velm[languages]'.
            'none': only blanks and punctuation separate words, as in checkpoints of earlier versions.

    Raises:
        MissingPackageError: the dictionary is not installed.
    """

    _WORD = r"\w+(?:['’\-]\w+)*|[^\w\s]"
    _ASCII_WORD = re.compile(_WORD, re.ASCII)  # several times faster; differs from `tokenizers` beyond ASCII

    def __init__(
        self,
        *,
        lowercase: bool = True,
        min_frequency: int = 1,
        max_size: int | None = None,
        segment: Literal["auto", "none", "jieba", "mecab", "pythainlp"] = "auto",
    ) -> None:
        if min_frequency < 1:
            raise ValueError(f"min_frequency must be at least 1, got {min_frequency}.")
        if max_size is not None and max_size <= len(SPECIALS):
            raise ValueError(f"max_size must be above {len(SPECIALS)}, the special tokens, got {max_size}.")
        self.lowercase, self.min_frequency, self.max_size, self.segment = lowercase, min_frequency, max_size, segment
        self._pattern = _pattern(segment)
        self._build([])

    @property
    def vocab_size(self) -> int:
        return len(SPECIALS) + len(self._words)

    @property
    def trained(self) -> bool:
        return bool(self._words)

    def train(self, texts: Iterable[str]) -> None:
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(self.words(text))
        words = sorted((w for w, n in counts.items() if n >= self.min_frequency), key=lambda w: (-counts[w], w))
        if not words:
            raise ValueError(
                f"None of the {len(counts)} words in the training captions occurs min_frequency = "
                f"{self.min_frequency} times. Lower min_frequency or add captions."
            )
        self._build(words if self.max_size is None else words[: self.max_size - len(SPECIALS)])

    def normalise(self, text: str) -> str:
        """`decode(encode(text))` if every word is in the vocabulary."""
        return self._join(self.words(text))

    def words(self, text: str) -> list[str]:
        """The words of a text, in the vocabulary or not."""
        if text.isascii():
            return self._ASCII_WORD.findall(text.lower() if self.lowercase else text)
        text = self._splitter.normalizer.normalize_str(text)
        if self.segment == "none":
            return [word for word, _ in self._splitter.pre_tokenizer.pre_tokenize_str(text)]
        return self._segmented(text)

    def to_ids(self, text: str) -> list[int]:
        blank = BLANK in self._ids
        return [self._ids.get(word, self.unk_id) for word in self.words(text) if blank or word != BLANK]

    def to_text(self, ids: list[int]) -> str:
        return self._join([self._words[i - len(SPECIALS)] for i in ids])

    def vocabulary(self) -> dict[str, int]:
        return dict(self._ids)

    def state(self) -> dict[str, Any]:
        names = ("lowercase", "min_frequency", "max_size", "segment")
        return {"options": {name: getattr(self, name) for name in names}, "words": list(self._words)}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> WordTokenizer:
        """Restore a tokenizer; a state without `segment` is of an earlier version."""
        tokenizer = cls(**{"segment": "none", **state["options"]})
        tokenizer._build(list(state["words"]))
        return tokenizer

    @cached_property
    def _splitter(self) -> Any:
        from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

        backend = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
        steps = [normalizers.NFC()] + ([normalizers.Lowercase()] if self.lowercase else [])
        backend.normalizer = normalizers.Sequence(steps)
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(self._WORD), behavior="removed", invert=True)
        return backend

    def _build(self, words: list[str]) -> None:
        self._words = words
        self._ids = {word: i for i, word in enumerate(words, start=len(SPECIALS))}

    def _segmented(self, text: str) -> list[str]:
        """The words of a text under a `segment` other than 'none', with a BLANK where none is implied."""
        words: list[str] = []
        end = 0
        for match in self._pattern.finditer(text):
            word = match[0]
            if words and match.start() > end and _adjacent(words[-1], word):
                words.append(BLANK)
            end = match.end()
            words += dictionary(self.segment)[1](word) if match.lastgroup == "run" else [word]
        return words

    def _join(self, words: Sequence[str]) -> str:
        parts: list[str] = []
        for before, word in zip(["", *words], words, strict=False):
            glued = BLANK in (before, word) or word in _MARKS
            if before and not (glued or (self.segment != "none" and _adjacent(before, word))):
                parts.append(" ")
            parts.append(word)
        return "".join(parts).strip()


@cache
def _pattern(segment: str) -> Any:
    """The words of a text; the group `run` is what the dictionary of that name cuts."""
    scripts = dictionary(segment)[0] if segment in DICTIONARIES else ""
    run = rf"(?P<run>(?:(?=[{scripts}])\X)+)|" if scripts else ""
    return regex.compile(run + _TOKEN, regex.VERSION1)


@lru_cache(maxsize=1 << 16)
def _adjacent(before: str, after: str) -> bool:
    """Whether no blank is implied between two words."""
    chained = _CHAINED.match(before) and _CHAINED.match(after)
    return bool(chained or _UNSPACED.match(before[-1]) or _UNSPACED.match(after))
