"""Hard negatives: a caption with two words or phrases exchanged, or one word replaced, so that it becomes false.

    a small red circle left of a large blue square
    colour, size, shape               a small blue circle left of a large red square       words of two objects
    order                             a large blue square left of a small red circle       whole noun phrases
    relation                          a small red circle right of a large blue square      the opposite relation
    new_colour, new_size, new_shape   a small green circle left of a large blue square     a replaced word
    noun, adjective                   a shirt in a red man; a wet man with an old dog      captions of photographs

Exchanges keep the bag of words (as in Winoground, Thrush et al. 2022, arXiv 2204.03162, and ARO, Yuksekgonul et al.
2023, arXiv 2210.01936): a model that ignores word order is at chance. Replacements are recognisable by a single word.
Words are found by lists instead of a part-of-speech tagger: no dependency, and the same results on every machine.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterator, Mapping, Sequence

from velm.data.synthetic.scenes import COLOURS as DRAWN_COLOURS
from velm.data.synthetic.scenes import SHAPES


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


COLOURS = (*DRAWN_COLOURS, *_words("white brown orange pink grey gray tan blond blonde gold golden silver"))
SIZES = _words("small large big little tall short tiny huge long")
_SYNONYMS = (
    "grey gray silver",
    "blond blonde gold golden tan",
    "small little tiny short",
    "large big tall huge long",
)
SYNONYMS = {word: group.split()[0] for group in _SYNONYMS for word in group.split()}
"""Word -> the representative of its group of possible synonyms, which are never exchanged for each other."""

ADJECTIVES = _words(
    """young old older elderly wooden wet dry dirty muddy snowy sandy rocky grassy metal plastic stone brick concrete
    striped plaid spotted bald bearded shirtless barefoot empty crowded open closed dark bright colorful furry shaggy
    curly rusty steep shallow deep busy quiet happy sad smiling asian african american inflatable paved"""
)

_SINGULAR = _words(
    """man woman boy girl child kid baby toddler person lady guy dog puppy cat kitten horse cow sheep goat bird duck
    elephant giraffe zebra bear monkey fish player rider surfer skier snowboarder skateboarder cyclist biker climber
    swimmer runner hiker dancer singer musician worker chef policeman soldier fireman
    ball frisbee stick toy bone bike bicycle motorcycle car truck bus train boat canoe kayak plane airplane helicopter
    skateboard surfboard snowboard scooter sled swing slide trampoline kite umbrella balloon guitar drum camera phone
    laptop book newspaper sign flag bag backpack box bottle cup glass plate bowl cake pizza sandwich apple banana
    shirt t-shirt jacket coat dress skirt hat cap helmet scarf hoodie sweater vest uniform suit tie costume mask wig
    bench chair table couch sofa bed lamp clock door window wall fence gate bridge tower building house church barn
    street road sidewalk path trail field park garden yard beach river lake pond pool ocean sea waterfall fountain
    mountain hill cliff rock boulder cave tree log bush flower leaf forest snow sand mud grass water"""
)
_PLURAL = _words(
    """men women boys girls children kids babies toddlers people ladies guys dogs puppies cats horses cows birds ducks
    players riders cyclists climbers runners hikers dancers musicians workers soldiers balls toys sticks bikes cars
    trucks boats umbrellas balloons flags bags boxes books chairs tables benches hats helmets shirts jackets
    rocks trees flowers leaves mountains hills buildings houses windows"""
)
NOUNS = {**dict.fromkeys(_SINGULAR, "singular"), **dict.fromkeys(_PLURAL, "plural")}
"""Noun -> its number, so that exchanges stay grammatical."""

_ONE_WAY = {
    "to the left of": "to the right of",
    "left of": "right of",
    "in front of": "behind",
    "on top of": "underneath",
    "above": "below",
    "over": "under",
    "inside": "outside",
}
OPPOSITES = {**_ONE_WAY, **{opposite: phrase for phrase, opposite in _ONE_WAY.items()}}

DETERMINERS = frozenset(_words("a an the and or with another other one two three some his her their its"))
"""Determiners and conjunctions: nouns that only they separate are interchangeable, as in 'a boy and a girl'."""

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
_NOUNS_AND_SHAPES = frozenset((*NOUNS, *SHAPES))
_RELATION = re.compile(rf"\b(?:{'|'.join(sorted(OPPOSITES, key=len, reverse=True))})\b", re.IGNORECASE)
_ARTICLE = re.compile(r"\b(a)n?(\s+)$", re.IGNORECASE)
_VOWELS = (*"aeio", "um", "ug")
_SYMMETRIC = frozenset(("and", "or", "with", "beside", "near", "next", "against", "by"))

Span = tuple[int, int]


def make_hard_negative(caption: str, kind: str, known: Collection[str] = ()) -> str | None:
    """The first of `all_hard_negatives`; None if the caption has no words for this kind.

    Args:
        known: lower-case words that replacements are taken from, e.g. those of the training captions.

    Raises:
        ValueError: unknown kind.
    """
    return next(all_hard_negatives(caption, kind, known), None)


def all_hard_negatives(caption: str, kind: str, known: Collection[str] = ()) -> Iterator[str]:
    """Every way to make a caption false by one exchange or replacement of a kind, in the order of its words.

    Args:
        known: lower-case words that replacements are taken from.

    Raises:
        ValueError: unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"Unknown kind {kind!r} of hard negative. Available: {', '.join(KINDS)}.")
    if kind == "relation":
        return (
            caption[: m.start()] + OPPOSITES[m[0].lower()] + caption[m.end() :] for m in _RELATION.finditer(caption)
        )
    words = [match.span() for match in _WORD.finditer(caption)]
    lower = [caption[start:end].lower() for start, end in words]
    if kind == "order":
        return _exchanges(caption, words, lower, _noun_phrases(lower))
    lexicon = REPLACED[kind] if kind in REPLACED else EXCHANGED[kind]
    indices = [i for i, word in enumerate(lower) if word in lexicon and (word not in SHAPES or _is_noun(lower, i))]
    if kind in REPLACED:
        return _replacements(caption, words, lower, indices, [word for word in REPLACED[kind] if word in known])
    return _exchanges(caption, words, lower, [(i, i + 1) for i in indices])


def words_of(text: str) -> tuple[str, ...]:
    """The lower-case words of a text, without punctuation."""
    return tuple(_WORD.findall(text.lower()))


def _is_noun(lower: Sequence[str], index: int) -> bool:
    """Whether a shape word denotes a shape: 'a cross', 'a red ring', but not 'to cross' or 'a boxing ring'."""
    return index > 0 and (lower[index - 1] in _MODIFIERS or lower[index - 1] in ("a", "an", "the"))


def _noun_phrases(lower: Sequence[str]) -> list[Span]:
    """Nouns with their modifiers, without articles: half-open ranges of word indices."""
    spans = []
    for index, word in enumerate(lower):
        if word in NOUNS or (word in SHAPES and _is_noun(lower, index)):
            start = index
            while start and lower[start - 1] in _MODIFIERS:
                start -= 1
                if start > 1 and lower[start - 1] == "and" and lower[start - 2] in _MODIFIERS:
                    start -= 1  # black and white
            spans.append((start, index + 1))
    return spans


def _exchanges(caption: str, words: Sequence[Span], lower: Sequence[str], spans: Sequence[Span]) -> Iterator[str]:
    """Exchange two spans that differ in meaning, agree in number and are not interchangeable."""
    for first, second in itertools.combinations(spans, 2):
        one, other = (lower[start:end] for start, end in (first, second))
        if _meanings(one) == _meanings(other) or NOUNS.get(one[-1], "singular") != NOUNS.get(other[-1], "singular"):
            continue
        if not _interchangeable(lower, first, second):
            (a, b), (c, d) = ((words[start][0], words[end - 1][1]) for start, end in (first, second))
            yield _append(_append(caption[:a], caption[c:d]) + caption[b:c], caption[a:b]) + caption[d:]


def _interchangeable(lower: Sequence[str], first: Span, second: Span) -> bool:
    """Whether an exchange keeps the meaning: 'black and white', 'a boy and a girl', 'a boy near a girl'."""
    between = [word for word in lower[first[1] : second[0]] if word not in _MODIFIERS]
    if DETERMINERS.issuperset(between):
        return True
    if lower[first[1] - 1] not in _NOUNS_AND_SHAPES:
        return False  # a modifier that belongs to its own noun
    joint = [word for word in between if word not in DETERMINERS or word in _SYMMETRIC]
    return joint[-1] in _SYMMETRIC or joint[-2:] == ["next", "to"]


def _meanings(words: Sequence[str]) -> list[str]:
    return [SYNONYMS.get(word, word) for word in words]


def _replacements(
    caption: str, words: Sequence[Span], lower: Sequence[str], indices: Sequence[int], pool: Sequence[str]
) -> Iterator[str]:
    """Replace a word by one of the pool whose meaning the caption does not contain, beginning with the next."""
    present = _meanings(lower)
    for index in indices:
        after = pool.index(lower[index]) + 1 if lower[index] in pool else 0
        for new in [*pool[after:], *pool[:after]]:
            if SYNONYMS.get(new, new) not in present:
                start, end = words[index]
                yield _append(caption[:start], new) + caption[end:]


def _append(before: str, text: str) -> str:
    """Concatenate, with the article before `text` adjusted: 'a' or 'an'."""
    ending = "n" if text.lower().startswith(_VOWELS) else ""
    return _ARTICLE.sub(lambda match: match[1] + ending + match[2], before) + text
