"""Penn Treebank tokenization as caption metrics use it: lower case, no punctuation, without Java.

pycocoevalcap runs Stanford's PTBTokenizer (CoreNLP 3.4.1) and drops the tokens of `PUNCTUATION`. This file implements
the rules that captions need, quirks included: brackets become `-lrb-`; "!!" is kept, because it is not "!"; an
abbreviation keeps its full stop. Smileys and a single letter at the end of a sentence ("plan B. The") may differ.
"""

from __future__ import annotations

import re

__all__ = ["ptb_tokenize"]

PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])

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
    | {"¢": " cents ", "£": " # ", "€": " $ ", "½": "1/2", "¼": "1/4", "¾": "3/4"}
)
_ENTITIES = (("&quot;", '"'), ("&lt;", "<"), ("&gt;", ">"), ("&amp;", "&"))
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}

_ENDING = r"(?:n't|'(?:s|re|ve|ll|d|m))(?![^\W_])"
_TOKEN = re.compile(
    rf"""
      https?://[^\s"<>]*[\w/] | www\.[^\s"<>]*[\w/]          # an address
    | [\w.+-]+@[\w-]+(?:\.\w+)+
    | </?[a-z][^\s<>]*>                                      # a tag
    | (?-i:[A-Z]{{1,2}}&[A-Z]{{1,2}})                            # AT&T
    | [#@][^\W\d]\w*                                         # #hashtag @user
    | (?<!\w){_ENDING}                                       # an ending that stands alone
    | 'n'(?!\w) | '(?:cause|em|til|tis|twas)(?!\w) | '\d\ds(?!\w)
    | no\.(?=\s*\d)
    | (?:{"|".join(_ABBREVIATIONS.split())})\.(?!\w)
    | [^\W\d_](?:\.[^\W\d_])+(?![^\W_])\.? | ph\.d\.         # u.s. 5 p.m.
    | [^\W\d_]\.(?![\w.])                                    # J. Smith
    | \.\d+ | \d+(?:[.,:]\d+)+(?![^\W_])                     # 1,000.5
    | (?:(?!{_ENDING})\w)+                                   # a word up to its ending, with what it may hold
      (?: (?: [-./] | (?!{_ENDING})'(?=[^\W\d_]) ) (?:(?!{_ENDING})\w)+ )*
    | {_ENDING}
    | \.+ | -+ | [?!]+
    | \S
    """,
    re.VERBOSE | re.IGNORECASE,
)


def ptb_tokenize(caption: str) -> list[str]:
    """The words of a caption, as pycocoevalcap splits it.

    >>> ptb_tokenize("A man can't ride the dog's bike, at 5 p.m.!")
    ['a', 'man', 'ca', "n't", 'ride', 'the', 'dog', "'s", 'bike', 'at', '5', 'p.m.']
    """
    for entity, character in _ENTITIES:
        caption = caption.replace(entity, character)
    words: list[str] = []
    for token in map(str.lower, _TOKEN.findall(caption.translate(_CHARACTERS))):
        if token in _PARTS:
            words += _PARTS[token]
        elif not _is_punctuation(token):
            words.append(_BRACKETS.get(token, token))
    return words


def _is_punctuation(token: str) -> bool:
    # dots and dashes of any length are punctuation; the original cannot read characters beyond U+FFFF
    return token in PUNCTUATION or token == '"' or not token.strip(".") or not token.strip("-") or token > "\uffff"
