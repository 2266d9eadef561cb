"""Word lists for hard negatives: colours, sizes, shapes, adjectives, nouns, relations and function words.

Lists instead of a part-of-speech tagger: no dependency, and the same results on every machine.
"""

from __future__ import annotations

from velm.data.synthetic.scenes import COLOURS as DRAWN_COLOURS
from velm.data.synthetic.scenes import SHAPES

__all__ = [
    "ADJECTIVES",
    "COLOURS",
    "FUNCTION_WORDS",
    "DETERMINERS",
    "NOUNS",
    "OPPOSITES",
    "SHAPES",
    "SIZES",
    "SYNONYMS",
]


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

FUNCTION_WORDS = frozenset(
    _words("a an the in on at of to by for from with and or as is are was were be being it its this that")
)
"""Words whose confusion says little about the image."""
