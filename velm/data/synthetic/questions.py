"""Questions about the drawn scenes of `shapes`, each with its one short answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from velm.data.base import Record, Records, text_only
from velm.data.synthetic.scenes import COLOURS, RELATIONS, SHAPES, SIZES, Thing
from velm.data.synthetic.shapes import Shapes

__all__ = ["ANSWERS", "ShapesQuestions", "ask"]

#: Every answer there is: a closed set for `velm evaluate --answers`.
ANSWERS = ("yes", "no", *SIZES, *COLOURS, *SHAPES)


class ShapesQuestions(Shapes):
    """The scenes of `shapes` with questions as texts and answers as targets: "what colour is the large star?", "red".

    Only what has one right answer is asked: attributes of a thing that the others tell apart, what stands beside it,
    and whether there is a thing, the absent ones being made of the colour and the shape of two that are there. The
    options are those of `Shapes`.
    """

    def split(self, name: str) -> Sequence[Record]:
        return _Asked(super().split(name))


class _Asked(Records):
    """The records of `shapes`, asked about."""

    def __init__(self, scenes: Sequence[Record]) -> None:
        self._scenes = scenes

    def __len__(self) -> int:
        return len(self._scenes)

    def record(self, place: int) -> Record:
        return _asked(self._scenes[place])

    def text_only(self, place: int) -> Record:
        return _asked(text_only(self._scenes, place))


def _asked(record: Record) -> Record:
    things = [Thing(*(each[name] for name in Thing._fields)) for each in record.metadata["objects"]]
    pairs = ask(things, record.metadata["axis"])
    return replace(record, texts=tuple(text for text, _ in pairs), targets=tuple(answer for _, answer in pairs))


def ask(things: Sequence[Thing], axis: str | None) -> list[tuple[str, str]]:
    """(question, answer) pairs about things from left to right ('horizontal') or from top to bottom ('vertical')."""
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
