"""Visual questions about the scenes of `shapes`, each with one short answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from velm.data.base import Record
from velm.data.synthetic.scenes import COLOURS, RELATIONS, SHAPES, SIZES, Thing
from velm.data.synthetic.shapes import Drawings, Shapes

__all__ = ["ANSWERS", "ShapesQuestions", "ask"]

ANSWERS = ("yes", "no", *SIZES, *COLOURS, *SHAPES)
"""Every answer: a closed set for `velm evaluate --answers`."""


class _Questions(Drawings):
    """The records of `shapes` with questions and answers instead of descriptions."""

    def record(self, index: int) -> Record:
        return _with_questions(super().record(index))

    def text_only(self, index: int) -> Record:
        return _with_questions(super().text_only(index))


class ShapesQuestions(Shapes):
    """The scenes of `shapes` with questions as texts and answers as targets: "what colour is the large star?", "red".

    Every question has one correct answer: attributes of an object that the other attributes identify, the neighbour of
    an object, and existence, where absent objects combine the colour and shape of two present ones. The options are
    those of `Shapes`; the only language is English.
    """

    record_type = _Questions
    languages = ("en",)


def _with_questions(record: Record) -> Record:
    things = [Thing(*(each[name] for name in Thing._fields)) for each in record.metadata["objects"]]
    pairs = ask(things, record.metadata["axis"])
    return replace(record, texts=tuple(text for text, _ in pairs), targets=tuple(answer for _, answer in pairs))


def ask(things: Sequence[Thing], axis: str | None) -> list[tuple[str, str]]:
    """(question, answer) pairs about objects ordered along the axis: left to right, or top to bottom ('vertical')."""
    pairs = []
    for thing in things:
        described = {
            "colour": f"the {thing.size} {thing.shape}",
            "shape": f"the {thing.size} {thing.colour} thing",
            "size": f"the {thing.colour} {thing.shape}",
        }
        for asked, name in described.items():
            others = [field for field in Thing._fields if field != asked]
            if sum(all(getattr(each, o) == getattr(thing, o) for o in others) for each in things) == 1:
                pairs.append((f"what {asked} is {name} ?", str(getattr(thing, asked))))
        pairs.append((f"is there a {thing.colour} {thing.shape} ?", "yes"))
    there = {(thing.colour, thing.shape) for thing in things}
    mixed = {(one.colour, other.shape) for one in things for other in things} - there
    pairs += [(f"is there a {colour} {shape} ?", "no") for colour, shape in sorted(mixed)]
    if axis is not None and len({thing[1:] for thing in things}) == len(things) == 2:
        (first, *_), (second, *_) = RELATIONS[axis]
        left, right = things
        pairs.append((f"what shape is {first} the {right.colour} {right.shape} ?", left.shape))
        pairs.append((f"what shape is {second} the {left.colour} {left.shape} ?", right.shape))
    return pairs
