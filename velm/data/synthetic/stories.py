"""Stories about the scenes of `shapes`, to be summed up in one sentence. No image is drawn."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import combinations

from velm.data.base import Record, Records
from velm.data.synthetic.scenes import COLOURS, RELATIONS, SHAPES, Scene, Thing, describe
from velm.data.synthetic.shapes import Drawings, Shapes

__all__ = ["ShapesStories", "summary", "tell"]


class ShapesStories(Shapes):
    """Scenes of `shapes` told fact by fact as texts, with the one sentence that says it all as the target.

    A story says everything that is true of its scene, in any order, some of it more than once, and what is absent
    besides: "the star is blue. there is no ring. the circle is left of the star. the star is large. ..." is summed up
    as "a small red circle left of a large blue star". The splits are those of `Shapes`; records have no image.

    Args:
        train_size: scenes to train on.
        val_size: scenes in `val`.
        test_size: scenes in `test`.
        heldout_size: scenes in `heldout`, one unseen combination of colour and shape in each.
        objects: objects in a scene, 1 to 3.
        stories: told of a scene, each in other words.
        seed: another seed, other stories and other splits.
    """

    def __init__(
        self,
        *,
        train_size: int = 8000,
        val_size: int = 500,
        test_size: int = 500,
        heldout_size: int = 500,
        objects: int = 2,
        stories: int = 4,
        seed: int = 0,
    ) -> None:
        if stories < 1:
            raise ValueError(f"stories {stories} is too small: a scene is told at least once.")
        super().__init__(
            train_size=train_size, val_size=val_size, test_size=test_size, heldout_size=heldout_size, objects=objects,
            seed=seed,
        )  # fmt: skip
        self.stories = stories

    def split(self, name: str) -> Sequence[Record]:
        return _Told(self.drawings(name), self.stories)


class _Told(Records):
    """The scenes of drawings, told in place of drawn."""

    def __init__(self, drawings: Drawings, stories: int) -> None:
        self._drawings, self._stories = drawings, stories

    def __len__(self) -> int:
        return len(self._drawings)

    def record(self, place: int) -> Record:
        identity, scene = self._drawings.scene(place)
        rng = random.Random(f"{self._drawings.seed}/{self._drawings.name}/{place}/story")
        texts = tuple(tell(scene, rng) for _ in range(self._stories))
        return Record(identity, None, texts, (summary(scene),) * len(texts))


def summary(scene: Scene) -> str:
    """The shortest sentence that says everything: the things from left to right, or from top to bottom."""
    return describe(scene)[0]


def tell(scene: Scene, rng: random.Random) -> str:
    """Everything that is true of a scene in random order, some of it twice, and two things that are absent."""
    facts = [fact for thing in scene.things for fact in _attributes(thing, scene, rng)]
    for first, second in zip(scene.things, scene.things[1:], strict=False):
        forth, back = RELATIONS[scene.axis or "horizontal"]
        if rng.random() < 0.5:
            first, second, forth = second, first, back
        facts.append(f"{_name(first, scene, rng)} is {rng.choice(forth)} {_name(second, scene, rng)}")
    facts += rng.sample(facts, 2)
    facts.append(f"nothing is {rng.choice([c for c in COLOURS if c not in {t.colour for t in scene.things}])}")
    facts.append(f"there is no {rng.choice([s for s in SHAPES if s not in {t.shape for t in scene.things}])}")
    rng.shuffle(facts)
    return " . ".join(facts) + " ."


def _attributes(thing: Thing, scene: Scene, rng: random.Random) -> list[str]:
    """What a thing is, under names that already say the rest, until nothing is left to be said."""
    names = _names(thing, scene)
    told = []
    for field, value in thing._asdict().items():
        name = rng.choice([name for name in names if field not in name] or names)
        told.append(f"{_called(thing, name)} is {'a ' * (field == 'shape')}{value}")
    return told


def _name(thing: Thing, scene: Scene, rng: random.Random) -> str:
    return _called(thing, rng.choice(_names(thing, scene)))


def _names(thing: Thing, scene: Scene) -> list[tuple[str, ...]]:
    """The smallest sets of attributes that no other thing of the scene shares."""
    others = [other for other in scene.things if other != thing]
    for size in range(1, len(Thing._fields) + 1):
        found = [
            fields
            for fields in combinations(Thing._fields, size)
            if not any(all(getattr(o, f) == getattr(thing, f) for f in fields) for o in others)
        ]
        if found:
            return found
    raise ValueError(f"{thing} is twice in the scene.")


def _called(thing: Thing, fields: tuple[str, ...]) -> str:
    """'the large star', or 'the large one' where the shape is left out."""
    return " ".join(["the", *(getattr(thing, f) for f in fields), *(() if "shape" in fields else ("one",))])
