"""Hard negatives: a caption with two of its words exchanged, or one replaced, so that it is no longer true.

    a small red circle left of a large blue square
    colour, size, shape               a small blue circle left of a large red square       exchanged between two things
    order                             a large blue square left of a small red circle       the things, whole
    relation                          a small red circle right of a large blue square      its opposite
    new_colour, new_size, new_shape   a small green circle left of a large blue square     replaced
    noun, adjective                   a shirt in a red man; a wet man with an old dog      of photographs

Exchanges keep every word (as in Winoground, Thrush et al. 2022, arXiv 2204.03162, and ARO, Yuksekgonul et al. 2023,
arXiv 2210.01936): a model that only knows which words are there is at chance. Replacements can be told by one word.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Mapping, Sequence

from velm.evaluation.compositional.lexicon import ADJECTIVES, COLOURS, GLUE, NOUNS, OPPOSITES, SHAPES, SIZES, SYNONYMS

__all__ = ["EXCHANGED", "KINDS", "REPLACED", "swapped"]

EXCHANGED: Mapping[str, Collection[str]] = {
    "colour": COLOURS,
    "size": SIZES,
    "shape": SHAPES,
    "noun": NOUNS,
    "adjective": ADJECTIVES,
}
REPLACED: Mapping[str, Sequence[str]] = {"new_colour": COLOURS, "new_size": SIZES, "new_shape": SHAPES}
KINDS = (*EXCHANGED, "order", "relation", *REPLACED)

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_MODIFIERS = frozenset((*COLOURS, *SIZES, *ADJECTIVES))
_THINGS = frozenset((*NOUNS, *SHAPES))
_RELATION = re.compile(rf"\b(?:{'|'.join(sorted(OPPOSITES, key=len, reverse=True))})\b", re.IGNORECASE)
_ARTICLE = re.compile(r"\b(a)n?(\s+)$", re.IGNORECASE)
_VOWELS = (*"aeio", "um", "ug")
_ALIKE = frozenset(("and", "or", "with", "beside", "near", "next", "against", "by"))

Span = tuple[int, int]


def swapped(sentence: str, kind: str, known: Collection[str] = ()) -> str | None:
    """The sentence made false in one way, or None where it offers no such way.

    Args:
        sentence: a caption.
        kind: one of `KINDS`.
        known: words that replacements may come from, lower-case; those that a model has met.
    """
    if kind not in KINDS:
        raise ValueError(f"Unknown kind {kind!r} of swap. Available: {', '.join(KINDS)}.")
    if kind == "relation":
        found = _RELATION.search(sentence)
        return found and sentence[: found.start()] + OPPOSITES[found[0].lower()] + sentence[found.end() :]
    words = [match.span() for match in _WORD.finditer(sentence)]
    lower = [sentence[start:end].lower() for start, end in words]
    if kind == "order":
        return _exchanged(sentence, words, lower, _phrases(lower))
    lexicon = REPLACED[kind] if kind in REPLACED else EXCHANGED[kind]
    places = [i for i, word in enumerate(lower) if word in lexicon and (word not in SHAPES or _is_thing(lower, i))]
    if kind in REPLACED:
        return _replaced(sentence, words, lower, places, [word for word in REPLACED[kind] if word in known])
    return _exchanged(sentence, words, lower, [(i, i + 1) for i in places])


def _is_thing(lower: Sequence[str], place: int) -> bool:
    """Whether a shape is one: 'a cross', 'a red ring', but not 'to cross' or 'a boxing ring'."""
    return place > 0 and (lower[place - 1] in _MODIFIERS or lower[place - 1] in ("a", "an", "the"))


def _phrases(lower: Sequence[str]) -> list[Span]:
    """Things with what modifies them, without their article: places of words, from and up to."""
    spans = []
    for place, word in enumerate(lower):
        if word in NOUNS or (word in SHAPES and _is_thing(lower, place)):
            start = place
            while start and lower[start - 1] in _MODIFIERS:
                start -= 1
                if start > 1 and lower[start - 1] == "and" and lower[start - 2] in _MODIFIERS:
                    start -= 1  # black and white
            spans.append((start, place + 1))
    return spans


def _exchanged(sentence: str, words: Sequence[Span], lower: Sequence[str], spans: Sequence[Span]) -> str | None:
    """The first two different spans of one number that are not alike in the sentence change places."""
    for first, second in itertools.combinations(spans, 2):
        one, other = (lower[start:end] for start, end in (first, second))
        if _meanings(one) == _meanings(other) or NOUNS.get(one[-1], "singular") != NOUNS.get(other[-1], "singular"):
            continue
        if not _alike(lower, first, second):
            (a, b), (c, d) = ((words[start][0], words[end - 1][1]) for start, end in (first, second))
            return _put(_put(sentence[:a], sentence[c:d]) + sentence[b:c], sentence[a:b]) + sentence[d:]
    return None


def _alike(lower: Sequence[str], first: Span, second: Span) -> bool:
    """Whether an exchange would say the same again: 'black and white', 'a boy and a girl', 'a boy near a girl'."""
    between = [word for word in lower[first[1] : second[0]] if word not in _MODIFIERS]
    if GLUE.issuperset(between):
        return True
    if lower[first[1] - 1] not in _THINGS:
        return False  # a modifier has a thing of its own
    joint = [word for word in between if word not in GLUE or word in _ALIKE]
    return joint[-1] in _ALIKE or joint[-2:] == ["next", "to"]


def _meanings(words: Sequence[str]) -> list[str]:
    return [SYNONYMS.get(word, word) for word in words]


def _replaced(
    sentence: str, words: Sequence[Span], lower: Sequence[str], places: Sequence[int], pool: Sequence[str]
) -> str | None:
    """The first of the places gets the next word of the pool that means nothing that the sentence says."""
    said = _meanings(lower)
    for place in places:
        after = pool.index(lower[place]) + 1 if lower[place] in pool else 0
        new = next((w for w in [*pool[after:], *pool[:after]] if SYNONYMS.get(w, w) not in said), None)
        if new is not None:
            start, end = words[place]
            return _put(sentence[:start], new) + sentence[end:]
    return None


def _put(before: str, text: str) -> str:
    """Both in one, with the article that the text wants."""
    ending = "n" if text.lower().startswith(_VOWELS) else ""
    return _ARTICLE.sub(lambda found: found[1] + ending + found[2], before) + text
