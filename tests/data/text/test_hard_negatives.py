"""Hard negatives of synthetic and of real captions by hand; they are never true of a synthetic scene."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from velm.data.synthetic.scenes import Scenes, describe
from velm.data.text.hard_negatives import EXCHANGED, KINDS, OPPOSITES, make_hard_negative

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


@pytest.mark.parametrize(("caption", "kind", "expected"), BY_HAND)
def test_by_hand(caption: str, kind: str, expected: str | None) -> None:
    assert make_hard_negative(caption, kind, KNOWN) == expected


@pytest.mark.parametrize(
    ("caption", "kind"),
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
def test_interchangeable_words_give_no_negative(caption: str, kind: str) -> None:
    assert make_hard_negative(caption, kind, KNOWN) is None


@settings(deadline=None)
@given(st.integers(1, 3), st.booleans(), st.data())
def test_a_hard_negative_is_never_true_of_its_scene(objects: int, held_out: bool, data: st.DataObject) -> None:
    scenes = Scenes(objects, held_out=held_out)
    texts = describe(scenes[data.draw(st.integers(0, len(scenes) - 1))])
    known = {"red", "green", "blue", "yellow", "small", "large", "circle", "square", "star"}
    for text in texts:
        for kind in KINDS:
            negative = make_hard_negative(text, kind, known)
            if negative is not None:
                assert negative not in texts
            if negative is not None and kind in (*EXCHANGED, "order"):
                assert sorted(negative.split()) == sorted(text.split())
                assert (
                    objects > 2 or make_hard_negative(negative, kind) == text
                )  # exchanging twice restores the caption


def test_opposites_are_symmetric() -> None:
    assert all(OPPOSITES[OPPOSITES[phrase]] == phrase for phrase in OPPOSITES)


def test_replacements_are_known_words() -> None:
    assert make_hard_negative("a red circle", "new_colour", {"red"}) is None
    assert make_hard_negative("a red circle", "new_colour", {"red", "pink"}) == "a pink circle"
    assert make_hard_negative("a little dog", "new_size", {"little", "small", "huge"}) == "a huge dog"


def test_an_unknown_kind_lists_the_known() -> None:
    with pytest.raises(ValueError, match=r"Unknown kind 'color' of hard negative. Available: colour, size, shape"):
        make_hard_negative("a", "color")
