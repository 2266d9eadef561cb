"""Tokenizations of captions by name: the field's, sacrebleu's, and those of dictionaries.

    auto                     as ptb, but Chinese and Japanese per character, emoji whole, combining marks in their word
    ptb                      as pycocoevalcap: a run of Chinese or Japanese is one word
    jieba, mecab, pythainlp  as auto, but words of Chinese, Japanese, Thai by a dictionary
    zh, char, 13a, none      as sacrebleu names them (Post 2018, arXiv 1804.08771); case and punctuation stay
    ja = ja-mecab            as sacrebleu: MeCab with ipadic
    intl, ko = ko-mecab      by sacrebleu

The dictionaries and sacrebleu are the extra `languages`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import regex

from velm.errors import ConfigError, MissingPackageError
from velm.metrics.ptb import ptb_tokenize, ptb_words
from velm.segmentation import DICTIONARIES, EMOJI, HAN_KANA, dictionary
from velm.util import did_you_mean

__all__ = ["TOKENIZATIONS", "Tokenize", "auto_tokenize", "tokenize_by", "tokenize_chinese"]

Tokenize = Callable[[str], list[str]]

_MARKS = r"\p{M}\u200c\u200d"
_CHINESE = re.compile(  # sacrebleu's ranges as its comparisons of strings read them
    r"([\u2001-\u2a6d\u2e80-\u2fdf\u2ff0-\u303f\u3100-\u312f\u31a0-\u31ef\u3200-\u4db5\u4e00-\u9fbb\uf900-\ufa2d"
    r"\ufa30-\ufa6a\ufa70-\ufad9\ufe10-\ufe1f\ufe30-\ufe4f\uff00-\uffef])"
)
_WESTERN = (
    (re.compile(r"([{-~\[-` -&(-+:-@/])"), r" \1 "),
    (re.compile(r"([^0-9])([.,])"), r"\1 \2 "),  # a full stop or comma stays beside a digit
    (re.compile(r"([.,])([^0-9])"), r" \1 \2"),
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),
)


def auto_tokenize(caption: str, *, segment: str | None = None) -> list[str]:
    """The words of a caption in any language: `ptb_tokenize` where it reads the script.

    Chinese and Japanese are cut per grapheme cluster, an emoji is one word, every combining mark belongs to its word
    (CoreNLP drops those of Khmer, Kannada, ...), and characters are composed (NFC). Thai, Lao and Khmer are cut at
    blanks only, as by `ptb_tokenize`.

    Args:
        caption: in any mixture of languages.
        segment: one of `velm.segmentation.DICTIONARIES`, which cuts the runs of its script; None: no dictionary.

    >>> auto_tokenize("一只黑狗 runs"), auto_tokenize("काला कुत्ता")
    (['一', '只', '黑', '狗', 'runs'], ['काला', 'कुत्ता'])
    """
    if caption.isascii():
        return ptb_tokenize(caption)
    words: list[str] = []
    end, text = 0, unicodedata.normalize("NFC", caption)
    for match in _unspaced(segment).finditer(text):
        words += ptb_words(text[end : match.start()], _MARKS)
        words += dictionary(str(segment))[1](match[0]) if match.lastgroup == "run" else [match[0]]
        end = match.end()
    return words + ptb_words(text[end:], _MARKS)


def tokenize_chinese(caption: str) -> list[str]:
    """Characters of Chinese and words of the rest, as sacrebleu's `zh`."""
    return _western_words(_CHINESE.sub(r" \1 ", caption.strip()))


def tokenize_by(name: str | Tokenize) -> Tokenize:
    """The tokenization of that name; a function is returned as it is.

    Raises:
        ConfigError: there is none of that name.
        MissingPackageError: it needs a package that is not installed.
    """
    if callable(name):
        return name
    if name not in TOKENIZATIONS:
        guess = did_you_mean(str(name), TOKENIZATIONS)
        raise ConfigError(f"No tokenization {name!r} (metrics.tokenize).{guess} It is {', '.join(TOKENIZATIONS)}.")
    return _LOADERS.get(name, partial(_by_sacrebleu, name))()


@cache
def _unspaced(segment: str | None) -> Any:
    """What is cut out of a text before `ptb_words`; the group `run` is for the dictionary."""
    run = "" if segment is None else rf"(?P<run>(?:(?=[{dictionary(segment)[0]}])\X)+)|"
    return regex.compile(rf"{run}(?=[{HAN_KANA}])\X|{EMOJI}")


def _by_dictionary(name: str) -> Tokenize:
    dictionary(name)  # raises where it is not installed
    return partial(auto_tokenize, segment=name)


def _mteval(caption: str) -> list[str]:
    """As sacrebleu's `13a`: mteval-v13a of WMT."""
    caption = caption.replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for entity, character in (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">")):
        caption = caption.replace(entity, character)
    return _western_words(f" {caption} ")


def _western_words(text: str) -> list[str]:
    for pattern, replacement in _WESTERN:
        text = pattern.sub(replacement, text)
    return text.split()


def _by_sacrebleu(name: str) -> Tokenize:
    try:
        from sacrebleu.metrics import BLEU

        tokenizer = BLEU(tokenize={"ko": "ko-mecab"}.get(name, name)).tokenizer
    except (ImportError, RuntimeError) as error:
        raise MissingPackageError(
            f"metrics.tokenize={name} is by sacrebleu, which is not installed, or not with this language "
            f"({str(error).strip().splitlines()[0]}): pip install 'velm[languages]' or 'sacrebleu[ko]'."
        ) from error
    return lambda caption: tokenizer(caption).split()


def _japanese() -> Tokenize:
    return dictionary("mecab")[1]


_LOADERS: dict[str, Callable[[], Tokenize]] = {
    "auto": lambda: auto_tokenize,
    "ptb": lambda: ptb_tokenize,
    **{name: partial(_by_dictionary, name) for name in DICTIONARIES},
    "zh": lambda: tokenize_chinese,
    "ja": _japanese,
    "ja-mecab": _japanese,
    "char": lambda: lambda caption: [character for character in caption if not character.isspace()],
    "13a": lambda: _mteval,
    "none": lambda: str.split,
}
TOKENIZATIONS = (*_LOADERS, "intl", "ko", "ko-mecab")
"""Names for `metrics.tokenize`."""
