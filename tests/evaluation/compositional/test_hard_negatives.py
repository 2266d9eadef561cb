"""Swaps: by hand on drawn and real kinds of sentences, and never true of a drawn scene."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from velm.data.synthetic.scenes import Scenes, describe
from velm.evaluation.compositional.hard_negatives import EXCHANGED, KINDS, swapped
from velm.evaluation.compositional.lexicon import OPPOSITES

KNOWN = {"red", "green", "black", "small", "large", "circle", "star"}
DRAWN = "there is a small red circle to the left of a large blue square"
WORN = "An old man in a red shirt stands in front of an orange car by two wet dogs ."

BY_HAND = [
    (DRAWN, "colour", "there is a small blue circle to the left of a large red square"),
    (DRAWN, "size", "there is a large red circle to the left of a small blue square"),
    (DRAWN, "shape", "there is a small red square to the left of a large blue circle"),
    (DRAWN, "order", "there is a large blue square to the left of a small red circle"),
    (DRAWN, "relation", "there is a small red circle to the right of a large blue square"),
    (DRAWN, "new_colour", "there is a small green circle to the left of a large blue square"),
    (DRAWN, "new_shape", "there is a small red star to the left of a large blue square"),
    (DRAWN, "new_size", None),  # both sizes are taken
    (DRAWN, "noun", None),
    (WORN, "colour", "An old man in an orange shirt stands in front of a red car by two wet dogs ."),
    (WORN, "noun", "An old shirt in a red man stands in front of an orange car by two wet dogs ."),
    (WORN, "adjective", "A wet man in a red shirt stands in front of an orange car by two old dogs ."),
    (WORN, "order", "A red shirt in an old man stands in front of an orange car by two wet dogs ."),
    (WORN, "relation", "An old man in a red shirt stands behind an orange car by two wet dogs ."),
    ("a black and white dog runs over snow", "order", "a snow runs over black and white dog"),
]


@pytest.mark.parametrize(("sentence", "kind", "expected"), BY_HAND)
def test_by_hand(sentence: str, kind: str, expected: str | None) -> None:
    assert swapped(sentence, kind, KNOWN) == expected


@pytest.mark.parametrize(
    ("sentence", "kind"),
    [
        ("a black and white dog", "colour"),
        ("a boy and a girl", "noun"),
        ("a boy and another girl with a man", "noun"),
        ("a boy plays with a girl", "noun"),
        ("a boy sits next to a girl", "noun"),
        ("a dog chases two cats", "noun"),  # of different number
        ("a red car and a red bus", "colour"),
        ("a big brown dog", "size"),
        ("a large man with a big drum", "size"),
        ("a gray cat on a grey mat", "colour"),
        ("a dog waits to cross a square by the boxing ring", "shape"),
        ("", "relation"),
    ],
)
def test_what_would_say_the_same_again_is_left_alone(sentence: str, kind: str) -> None:
    assert swapped(sentence, kind, KNOWN) is None


@settings(deadline=None)
@given(st.integers(1, 3), st.booleans(), st.data())
def test_a_swapped_description_is_never_true_of_its_scene(objects: int, held_out: bool, data: st.DataObject) -> None:
    scenes = Scenes(objects, held_out=held_out)
    texts = describe(scenes[data.draw(st.integers(0, len(scenes) - 1))])
    known = {"red", "green", "blue", "yellow", "small", "large", "circle", "square", "star"}
    for text in texts:
        for kind in KINDS:
            false = swapped(text, kind, known)
            if false is not None:
                assert false not in texts
            if false is not None and kind in (*EXCHANGED, "order"):
                assert sorted(false.split()) == sorted(text.split())
                assert objects > 2 or swapped(false, kind) == text  # twice is not at all


def test_opposites_are_each_others() -> None:
    assert all(OPPOSITES[OPPOSITES[phrase]] == phrase for phrase in OPPOSITES)


def test_replacements_are_known_words() -> None:
    assert swapped("a red circle", "new_colour", {"red"}) is None
    assert swapped("a red circle", "new_colour", {"red", "pink"}) == "a pink circle"
    assert swapped("a little dog", "new_size", {"little", "small", "huge"}) == "a huge dog"


def test_an_unknown_kind_lists_the_known() -> None:
    with pytest.raises(ValueError, match=r"Unknown kind 'color' of swap. Available: colour, size, shape"):
        swapped("a", "color")
