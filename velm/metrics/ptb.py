"""Penn Treebank tokenization as caption metrics use it: lower case, no punctuation, without Java.

pycocoevalcap runs Stanford's PTBTokenizer (CoreNLP 3.4.1) and drops the tokens of `PUNCTUATION`. This file implements
the rules that captions need, quirks included: brackets become `-lrb-`; "!!" is kept, because it is not "!"; an
abbreviation keeps its full stop; a run of Chinese is one word; a character that CoreNLP cannot read (an emoji, a vowel
sign of Khmer) separates words and is dropped. Smileys, a single letter at the end of a sentence ("plan B. The") and
letters younger than Unicode 6.3 (2013) may differ.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import regex

__all__ = ["ptb_tokenize", "ptb_words"]

PUNCTUATION = frozenset(["‐", "‑", "֊", "''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])

_ABBREVIATIONS = (
    "mr mrs ms messrs dr drs prof st mt ft ave blvd rd ct bldg sq ste jr sr hon rev gov sen rep gen col maj capt"
    " lt sgt cpl pvt cmdr adm atty co corp inc ltd plc bros dept univ assn vs etc est ext cf al ph"
    " jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thurs fri"
)
_PARTS = {
    "cannot": ["can", "not"],
    "gonna": ["gon", "na"],
    "wanna": ["wan", "na"],
    "gotta": ["got", "ta"],
    "gimme": ["gim", "me"],
    "lemme": ["lem", "me"],
    "y'all": ["y'", "all"],
    "'tis": ["'t", "is"],
    "'twas": ["'t", "was"],
}
_CHARACTERS = str.maketrans(
    {"‘": "'", "’": "'", "“": '"', "”": '"', "«": '"', "»": '"', "…": "...", "–": "--", "—": "--", "―": "--"}
    | {"‹": "'", "›": "'", "‛": "'", "\u00ad": "", "¢": " cents ", "£": " # ", "€": " $ ", "¤": " $ ", "₠": " $ "}
    | {"½": " 1/2 ", "¼": " 1/4 ", "¾": " 3/4 ", "⅓": " 1/3 ", "⅔": " 2/3 "}
)
_ENTITIES = (("&quot;", '"'), ("&lt;", "<"), ("&gt;", ">"), ("&amp;", "&"))
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}

# What CoreNLP 3.4.1 counts among letters beside Unicode's: the combining marks that its authors listed, as read off its
# output for every character up to U+FFFF.
_MARKS = (
    "\u02c2-\u02c5\u02d2-\u02df\u02e5-\u02eb\u02ed\u02ef-\u036f\u0375\u0378\u0379\u0384\u0385\u03f6\u0483-\u0487"
    "\u055a-\u055f\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0615-\u061a\u064b-\u065e\u0670\u06d6-\u06e4"
    "\u06e7-\u06ed\u06fd\u06fe\u070f\u0711\u0730-\u074c\u07a6-\u07b1\u07eb-\u07f3\u0900-\u0903\u093c\u093e-\u094e"
    "\u0951-\u0955\u0962\u0963\u0981-\u0983\u09bc-\u09c4\u09c7\u09c8\u09cb-\u09cd\u09d7\u09e2\u09e3\u0a01-\u0a03"
    "\u0a3c\u0a3e-\u0a4f\u0a81-\u0a83\u0abc-\u0acf\u0b82\u0bbe-\u0bc2\u0bc6-\u0bc8\u0bca-\u0bcd\u0c01-\u0c03"
    "\u0c3e-\u0c56\u0d3e-\u0d44\u0d46-\u0d48\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u0eb1\u0eb4-\u0ebc\u0ec8-\u0ecd\u1885\u1886"
)
# Other characters that it keeps as tokens of their own, read off likewise; the rest are dropped.
_SYMBOLS = (
    "!-~¡¥-©¬®-´¶-¹¿×÷\u037e\u0387\u0589\u05be\u05c0\u05c3\u05c6\u05f3\u05f4\u0600-\u0603\u0606-\u060c\u0614\u061b"
    "\u061e\u061f\u066a\u066d\u06d4\u0700-\u070d\u07f6-\u07f8\u0964\u0965\u0e3f\u0e4f\u1fbd\u2016\u2017\u201a\u201e\u2020-\u2023"
    "\u2030-\u2038\u203b\u203e-\u2042\u2044\u2070\u2074-\u207e\u2080-\u208e\u20a4\u2100\u2101\u2103-\u2106\u2108\u2109"
    "\u2114\u2116-\u2118\u211e-\u2123\u2125\u2127\u2129\u212e\u213a\u213b\u2140-\u2144\u214a-\u214d\u214f\u2155-\u215e"
    "\u2190-\u2bff\u3001\u3002\u3012\u30fb\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65\uffe0\uffe1\uffe5\uffe6"
)
_TOKEN = r"""
      https?://[^\s"<>]*[{W}/] | www\.[^\s"<>]*[{W}/]          # an address
    | [{W}.+-]+@[{W}-]+(?:\.[{W}]+)+
    | </?[a-z][^\s<>]*>                                      # a tag
    | (?-i:[A-Z]{{1,2}}&[A-Z]{{1,2}})                            # AT&T
    | [#@][{L}_][{W}]*                                       # #hashtag @user
    | (?<![{W}]){ENDING}                                     # an ending that stands alone
    | 'n'(?![{W}]) | '(?:cause|em|til|tis|twas)(?![{W}]) | '\d\ds(?![{W}])
    | no\.(?=\s*\d)
    | (?:{ABBREVIATIONS})\.(?![{W}])
    | [a-z](?:\.[a-z])+(?![{L}{N}])\.? | ph\.d\.             # u.s. 5 p.m.
    | [a-z]\.(?![{W}.])                                      # J. Smith
    | \.\d+ | \d+(?:[.,:]\d+)+                               # 1,000.5
    | (?:y'all | c'est | c'mon | e'er)(?![{W}]) | [dol]'(?!{ENDING})[{L}{N}]+   # d'or, o'clock
    | (?-i:[A-HJ-XZn])'[{L}]{{2,}} | [{L}]+(?-i:[aeiouyA-Z]'[aeiouA-Z])[{L}]*   # J'ai, ma'am, qu'elle
    | {WORD}                                                 # a word up to its ending, with what it may hold
      (?: [.?!](?=[{L}]){WORD} | (?<=[a-z0-9])/(?=[a-z0-9]){WORD} | {HYPHEN} )*
    | {ENDING}
    | \.+ | -+ | [?!]+
    | [{SYMBOLS}]
    """


def ptb_tokenize(caption: str) -> list[str]:
    """The words of a caption, as pycocoevalcap splits it.

    >>> ptb_tokenize("A man can't ride the dog's bike, at 5 p.m.!")
    ['a', 'man', 'ca', "n't", 'ride', 'the', 'dog', "'s", 'bike', 'at', '5', 'p.m.']
    """
    return ptb_words(caption, _MARKS)


def ptb_words(text: str, marks: str) -> list[str]:
    """`ptb_tokenize` with other characters among the letters.

    Args:
        text: a caption, or a part of one.
        marks: the characters beside Unicode's letters, as content of a character class of `regex`.
    """
    for entity, character in _ENTITIES:
        text = text.replace(entity, character)
    text = text.translate(_CHARACTERS)
    lexer = _ascii_lexer() if text.isascii() else _lexer(marks)
    words: list[str] = []
    for token in map(str.lower, lexer.findall(text)):
        if token in _PARTS:
            words += _PARTS[token]
        elif not _is_punctuation(token):
            words.append(_BRACKETS.get(token, token))
    return words


@cache
def _ascii_lexer() -> Any:
    """The lexer of `re` for ASCII, where there are no marks: faster."""
    return re.compile(_pattern("a-z", "0-9", r"-[a-z0-9_]+"), re.VERBOSE | re.IGNORECASE | re.ASCII)


@cache
def _lexer(marks: str) -> Any:
    # a hyphen joins parts without marks only, and the part after it ends at its first mark
    plain = r"\p{L}\p{Nd}_"
    hyphen = rf"(?<=(?<![{plain}{marks}])[{plain}]+)[-‐‑֊][{plain}]+"
    return regex.compile(_pattern(rf"\p{{L}}{marks}", r"\p{Nd}", hyphen), regex.VERBOSE | regex.IGNORECASE)


def _pattern(letters: str, digits: str, hyphen: str) -> str:
    ending = rf"(?:n't|'(?:s|re|ve|ll|d|m))(?![{letters}{digits}])"
    word = rf"(?:(?!{ending})[{letters}{digits}_])+"
    parts = {"L": letters, "N": digits, "W": f"{letters}{digits}_", "ENDING": ending, "WORD": word, "HYPHEN": hyphen}
    return _TOKEN.format(ABBREVIATIONS="|".join(_ABBREVIATIONS.split()), SYMBOLS=_SYMBOLS, **parts)


def _is_punctuation(token: str) -> bool:
    # dots and dashes of any length are punctuation
    return token in PUNCTUATION or token == '"' or not token.strip(".") or not token.strip("-")
