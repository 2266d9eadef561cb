"""Text summarisation: stories about the scenes of `shapes`, with a one-sentence summary as target. No images."""

from __future__ import annotations

import random
from itertools import combinations

from velm.data.base import Record
from velm.data.synthetic.scenes import COLOURS, RELATIONS, SHAPES, Scene, Thing, describe
from velm.data.synthetic.shapes import Drawings, Shapes

__all__ = ["ShapesStories", "summary", "tell"]


class _Stories(Drawings):
    """The scenes of `shapes` as stories; nothing is drawn."""

    stories = 4

    def record(self, index: int) -> Record:
        identity, scene = self.scene(index)
        rng = random.Random(f"{self.seed}/{self.name}/{index}/story")
        texts = tuple(tell(scene, rng) for _ in range(self.stories))
        return Record(identity, None, texts, (summary(scene),) * len(texts))

    text_only = record


class ShapesStories(Shapes):
    """Scenes of `shapes` as stories (texts), with a one-sentence summary as target.

    A story states every fact of its scene in random order, some twice, and two absent attributes: "the star is blue.
    there is no ring. the circle is left of the star. the star is large. ..." has the summary "a small red circle left
    of a large blue star". The splits are those of `Shapes`; records have no image.

    Args:
        train_size: scenes to train on.
        val_size: scenes in `val`.
        test_size: scenes in `test`.
        heldout_size: scenes in `heldout`, each with one unseen combination of colour and shape.
        objects: per scene, 1 to 3.
        stories: per scene, in different words.
        seed: of stories and splits.
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
            raise ValueError(f"stories {stories} is too small; it is at least 1.")
        super().__init__(
            train_size=train_size, val_size=val_size, test_size=test_size, heldout_size=heldout_size, objects=objects,
            seed=seed,
        )  # fmt: skip
        self.stories = stories

    record_type = _Stories

    def split(self, name: str) -> _Stories:
        records = super().split(name)
        assert isinstance(records, _Stories)
        records.stories = self.stories
        return records


def summary(scene: Scene) -> str:
    """The shortest complete description: objects from left to right, or from top to bottom."""
    return describe(scene)[0]


def tell(scene: Scene, rng: random.Random) -> str:
    """Every fact of a scene in random order, two of them twice, and two absent attributes."""
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
    """The three attributes of an object, each under a name that does not contain it if possible."""
    names = _names(thing, scene)
    facts = []
    for field, value in thing._asdict().items():
        name = rng.choice([name for name in names if field not in name] or names)
        facts.append(f"{_called(thing, name)} is {'a ' * (field == 'shape')}{value}")
    return facts


def _name(thing: Thing, scene: Scene, rng: random.Random) -> str:
    return _called(thing, rng.choice(_names(thing, scene)))


def _names(thing: Thing, scene: Scene) -> list[tuple[str, ...]]:
    """The smallest sets of attributes that identify an object of the scene."""
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
