"""Where words begin in scripts without blanks: grapheme clusters, emoji and dictionaries.

A grapheme cluster (UAX 29, `\\X` of the package `regex`) is what a reader takes for one character: a consonant with its
vowel signs, a letter with its accents, an emoji of several code points. Chinese, Japanese, Thai, Lao, Khmer and Myanmar
have no blanks between words; their text is cut per cluster, or into words by a dictionary.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any

import regex

from velm.errors import MissingPackageError

__all__ = ["DICTIONARIES", "EMOJI", "HAN_KANA", "UNSPACED", "dictionary", "words_on_screen"]

Cut = Callable[[str], list[str]]

HAN_KANA = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}ーｰ〆"
"""The scripts of Chinese and Japanese, inside a character class of `regex`."""

UNSPACED = HAN_KANA + r"\p{Tibetan}\p{Line_Break=SA}"
"""HAN_KANA, Tibetan, and the scripts of South East Asia without blanks (line breaking class SA of UAX 14)."""

EMOJI = r"(?:(?=[\p{Extended_Pictographic}\p{Regional_Indicator}])\X|[0-9#*]\uFE0F?\u20E3)"
"""A pattern of one emoji, with its skin tone, the emoji joined to it, a flag or a keycap."""

_WORD_ON_SCREEN = regex.compile(rf"(?=[{UNSPACED}])\X[^\w\s]*|[^\s{UNSPACED}]+")


def words_on_screen(text: str) -> list[str]:
    """The parts of a text that a table shows one by one: words with their punctuation, clusters where no blanks are."""
    return _WORD_ON_SCREEN.findall(text)


@cache
def dictionary(name: str) -> tuple[str, Cut]:
    """The scripts that a dictionary reads, as content of a character class, and the function that cuts a run of them.

    Args:
        name: one of DICTIONARIES.

    Raises:
        MissingPackageError: its package is not installed.
    """
    scripts, load = _DICTIONARIES[name]
    return scripts, load()


def _jieba() -> Cut:
    jieba = _package("jieba", "jieba")
    jieba.setLogLevel("WARNING")
    return lambda run: list(jieba.cut(run))


def _pythainlp() -> Cut:
    tokenize = _package("pythainlp", "pythainlp.tokenize")
    return lambda run: list(tokenize.word_tokenize(run, engine="newmm"))


def _mecab() -> Cut:
    """As sacrebleu's `ja-mecab`: MeCab with ipadic."""
    mecab, ipadic = _package("mecab", "MeCab"), _package("mecab", "ipadic")
    tagger = mecab.Tagger(ipadic.MECAB_ARGS + " -Owakati")
    return lambda run: list(tagger.parse(run.strip()).split())


_DICTIONARIES: dict[str, tuple[str, Callable[[], Cut]]] = {
    "jieba": (r"\p{Han}", _jieba),
    "pythainlp": (r"\p{Thai}", _pythainlp),
    "mecab": (HAN_KANA, _mecab),
}
DICTIONARIES = tuple(_DICTIONARIES)
"""Names of dictionaries: of Chinese, Thai and Japanese. The packages are the extra `languages`."""


def _package(name: str, module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingPackageError(
            f"Segmentation by {name} needs a package that is not installed ({error}): pip install 'velm[languages]'."
        ) from error
