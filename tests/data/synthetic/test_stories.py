"""Stories say everything about their scene and nothing that is not so, and no image is drawn for them."""

from __future__ import annotations

import random

import pytest

from velm.data.synthetic.scenes import COLOURS, SHAPES, SIZES, Scene, Scenes, Thing
from velm.data.synthetic.stories import summary, tell
from velm.registry import datasets

STAR, RING = Thing("large", "blue", "star"), Thing("small", "red", "ring")


def facts(scene: Scene, seed: int = 0) -> list[str]:
    return tell(scene, random.Random(seed)).removesuffix(" .").split(" . ")


def named(name: str, scene: Scene) -> Thing:
    """The one thing that a name such as 'the large star' or 'the blue one' stands for."""
    words = set(name.split()) - {"the", "one"}
    (found,) = [thing for thing in scene.things if words <= set(thing)]
    return found


def test_the_summary_is_one_description() -> None:
    assert summary(Scene((STAR, RING), "horizontal")) == "a large blue star left of a small red ring"
    assert summary(Scene((STAR,), None)) == "a large blue star"


@pytest.mark.parametrize("objects", [1, 2, 3])
def test_all_is_told_and_all_is_true(objects: int) -> None:
    scenes = Scenes(objects)
    for seed in range(60):
        scene = scenes[random.Random(seed).randrange(len(scenes))]
        told: dict[Thing, set[str]] = {thing: set() for thing in scene.things}
        beside = 0
        for fact in facts(scene, seed):
            name, _, said = fact.partition(" is ")
            value = said.split()[-1]
            if fact.startswith("nothing is "):
                assert value in set(COLOURS) - {thing.colour for thing in scene.things}
            elif fact.startswith("there is no "):
                assert value in set(SHAPES) - {thing.shape for thing in scene.things}
            elif said.removeprefix("a ") in (*SIZES, *COLOURS, *SHAPES):
                assert value in named(name, scene)
                told[named(name, scene)].add(value)
            else:
                relation, _, other = said.rpartition(" the ")
                first, second = (scene.things.index(named(each, scene)) for each in (name, other))
                assert abs(first - second) == 1
                assert ("left" in relation or relation in ("above", "over")) == (first < second)
                beside += 1
        assert all(values == set(thing) for thing, values in told.items())
        assert beside >= objects - 1


def test_something_is_told_twice() -> None:
    told = facts(Scene((STAR, RING), "vertical"))
    assert len(told) - len(set(told)) >= 1


def test_records_have_stories_and_no_image() -> None:
    train = datasets.build({"name": "shapes_stories", "train_size": 20, "stories": 3}).split("train")
    assert len(train) == 20
    for record in train:
        assert record.image is None
        assert len(set(record.texts)) == 3
        assert len(set(record.targets)) == 1
    assert train[3] == train[3]
    drawn = datasets.build({"name": "shapes", "train_size": 20}).split("train")
    assert [record.image_id for record in train] == [record.image_id for record in drawn]
    assert all(record.targets[0] in image.texts for record, image in zip(train, drawn, strict=True))


def test_other_seeds_tell_other_stories() -> None:
    first, other = (datasets.build({"name": "shapes_stories", "seed": seed}).split("val")[0] for seed in (0, 1))
    assert first.texts != other.texts


def test_a_scene_is_told_at_least_once() -> None:
    with pytest.raises(ValueError, match=r"stories 0 is too small; it is at least 1"):
        datasets.build({"name": "shapes_stories", "stories": 0})
