"""Scenes of objects and what may be said of them: the grammar behind the drawn dataset `shapes`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Literal, NamedTuple

__all__ = ["COLOURS", "HELD_OUT", "SHAPES", "SIZES", "Scene", "Scenes", "Thing", "describe"]

SIZES = ("small", "large")
COLOURS = ("red", "green", "blue", "yellow", "purple", "cyan", "black")
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")

HELD_OUT = frozenset(  # never trained on: each of these shapes and colours is, but in other company
    [
        ("yellow", "circle"),
        ("purple", "square"),
        ("red", "triangle"),
        ("green", "star"),
        ("blue", "cross"),
        ("black", "ring"),
    ]
)

# axis -> what the first is to the second, what the second is to the first; the left-most, top-most comes first
RELATIONS = {
    "horizontal": (("left of", "to the left of"), ("right of", "to the right of")),
    "vertical": (("above", "over"), ("below", "under")),
}
OPENINGS = ("", "there is ")


class Thing(NamedTuple):
    """One object."""

    size: str
    colour: str
    shape: str

    def __str__(self) -> str:
        return f"a {self.size} {self.colour} {self.shape}"


class Scene(NamedTuple):
    """Objects from left to right or from top to bottom; a single one has no axis."""

    things: tuple[Thing, ...]
    axis: Literal["horizontal", "vertical"] | None


def describe(scene: Scene) -> tuple[str, ...]:
    """Every description of a scene that counts as right; no other scene shares one of them."""
    if scene.axis is None:
        return tuple(opening + str(scene.things[0]) for opening in OPENINGS)
    names = [str(thing) for thing in scene.things]
    forth, back = RELATIONS[scene.axis]
    readings = [(names, word) for word in forth] + [(names[::-1], word) for word in back]
    return tuple(opening + f" {word} ".join(order) for opening in OPENINGS for order, word in readings)


class Scenes(Sequence[Scene]):
    """Every scene of `objects` distinct objects in a fixed order, computed from its index.

    Args:
        objects: per scene.
        held_out: exactly one of the objects is a combination of `HELD_OUT`; otherwise none is.
        colours: of the objects.
    """

    def __init__(self, objects: int, held_out: bool = False, colours: Sequence[str] = COLOURS) -> None:
        self.objects = objects
        self.held_out = held_out
        things = [Thing(*choice) for choice in product(SIZES, colours, SHAPES)]
        self._unseen = [thing for thing in things if thing[1:] in HELD_OUT]
        self._seen = [thing for thing in things if thing[1:] not in HELD_OUT]
        self._axes: tuple[Literal["horizontal", "vertical"] | None, ...]
        self._axes = (None,) if objects == 1 else ("horizontal", "vertical")

    def __len__(self) -> int:
        seen = self.objects - self.held_out
        unseen = len(self._unseen) * self.objects if self.held_out else 1
        return len(self._axes) * unseen * math.perm(len(self._seen), seen)

    def __getitem__(self, rank):  # type: ignore[no-untyped-def]  # one scene, or a list of them for a slice
        if isinstance(rank, slice):
            return [self[i] for i in range(*rank.indices(len(self)))]
        if not 0 <= rank < len(self):
            raise IndexError(f"scene {rank} of {len(self)}")
        rank, axis = divmod(rank, len(self._axes))
        pool, things = list(self._seen), []
        unseen_thing = None
        if self.held_out:
            rank, position = divmod(rank, self.objects)
            rank, which = divmod(rank, len(self._unseen))
            unseen_thing = (position, self._unseen[which])
        for _ in range(self.objects - self.held_out):  # digits of the rank in a shrinking base: no object twice
            rank, which = divmod(rank, len(pool))
            things.append(pool.pop(which))
        if unseen_thing is not None:
            things.insert(*unseen_thing)
        return Scene(tuple(things), self._axes[axis])
