"""Words that hard negatives exchange: colours, sizes, shapes, adjectives, nouns of captions, relations; and glue.

Lists in place of a tagger: nothing to install, the same on every machine, and what is not in them is left alone.
"""

from __future__ import annotations

from velm.data.synthetic.scenes import COLOURS as DRAWN_COLOURS
from velm.data.synthetic.scenes import SHAPES

__all__ = ["ADJECTIVES", "COLOURS", "FUNCTION_WORDS", "GLUE", "NOUNS", "OPPOSITES", "SHAPES", "SIZES", "SYNONYMS"]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


COLOURS = (*DRAWN_COLOURS, *_words("white brown orange pink grey gray tan blond blonde gold golden silver"))
SIZES = _words("small large big little tall short tiny huge long")
_ALIKE = ("grey gray silver", "blond blonde gold golden tan", "small little tiny short", "large big tall huge long")
SYNONYMS = {word: group.split()[0] for group in _ALIKE for word in group.split()}
"""Word -> what stands for it and for those that may mean the same: they are never exchanged for each other."""

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
"""Noun -> its number, so that a sentence stays grammatical when two are exchanged."""

_FORTH = {
    "to the left of": "to the right of",
    "left of": "right of",
    "in front of": "behind",
    "on top of": "underneath",
    "above": "below",
    "over": "under",
    "inside": "outside",
}
OPPOSITES = {**_FORTH, **{back: forth for forth, back in _FORTH.items()}}

GLUE = frozenset(_words("a an the and or with another other one two three some his her their its"))
"""Words that leave what stands on either side of them alike: 'a boy and a girl' is 'a girl and a boy'."""

FUNCTION_WORDS = frozenset(
    _words("a an the in on at of to by for from with and or as is are was were be being it its this that")
)
"""Words of which one for another says little of what was seen."""
