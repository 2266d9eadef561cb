"""Drawn scenes: splits share nothing, every description is right for one scene only, boxes hold what they say."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from velm.data.synthetic import chinese
from velm.data.synthetic.questions import ShapesQuestions
from velm.data.synthetic.scenes import HELD_OUT, Scene, Scenes, Thing, describe
from velm.data.synthetic.shapes import RGB, Shapes, object_mask
from velm.errors import DataError

SPLITS = ("train", "val", "test", "heldout")


@pytest.fixture(scope="module", params=["en", "zh"])
def shapes(request: pytest.FixtureRequest) -> Shapes:
    return Shapes(train_size=300, val_size=200, test_size=200, heldout_size=200, language=request.param)


DESCRIPTIONS = {"en": 8, "zh": 6}  # of a scene of two objects


def things(shapes: Shapes, split: str) -> list[tuple[str, str]]:
    return [(thing["colour"], thing["shape"]) for r in shapes.split(split) for thing in r.metadata["objects"]]


def test_splits_share_no_scene_and_no_sentence(shapes: Shapes) -> None:
    texts = {split: {text for record in shapes.split(split) for text in record.texts} for split in SPLITS}
    ids = {split: {record.image_id for record in shapes.split(split)} for split in SPLITS}
    for first in SPLITS:
        for second in SPLITS:
            if first != second:
                assert not texts[first] & texts[second]
                assert not ids[first] & ids[second]


@pytest.mark.parametrize("split", ["val", "test", "heldout"])
def test_a_sentence_has_one_right_image_in_a_gallery(shapes: Shapes, split: str) -> None:
    sentences = Counter(text for record in shapes.split(split) for text in set(record.texts))
    assert set(sentences.values()) == {1}
    assert len(sentences) == 200 * DESCRIPTIONS[shapes.language]


@pytest.mark.parametrize("describe", [describe, chinese.describe])
def test_no_two_scenes_share_a_description(describe) -> None:  # type: ignore[no-untyped-def]
    for count in (1, 2, 3):
        scenes = Scenes(count)
        chosen = range(0, len(scenes), max(1, len(scenes) // 3000))
        sentences = Counter(text for rank in chosen for text in describe(scenes[rank]))
        assert set(sentences.values()) == {1}


def test_heldout_pairs_are_in_heldout_scenes_and_nowhere_else(shapes: Shapes) -> None:
    for split in ("train", "val", "test"):
        assert not HELD_OUT & set(things(shapes, split))
    pairs = things(shapes, "heldout")
    for first, second in zip(pairs[::2], pairs[1::2], strict=True):
        assert (first in HELD_OUT) + (second in HELD_OUT) == 1
    colours, kinds = ({pair[i] for pair in things(shapes, "train")} for i in (0, 1))
    assert {colour for colour, _ in HELD_OUT} <= colours
    assert {shape for _, shape in HELD_OUT} <= kinds


def test_the_same_seed_draws_the_same_and_another_does_not() -> None:
    sizes = {"train_size": 4, "val_size": 2, "test_size": 2, "heldout_size": 2}
    one, again, other = Shapes(**sizes), Shapes(**sizes), Shapes(**sizes, seed=1)
    for split in SPLITS:
        for first, second in zip(one.split(split), again.split(split), strict=True):
            assert first.texts == second.texts
            np.testing.assert_array_equal(first.image, second.image)
    assert [r.texts for r in one.split("test")] != [r.texts for r in other.split("test")]


def test_boxes_hold_the_colours_and_nothing_is_drawn_outside(shapes: Shapes) -> None:
    for record in list(shapes.split("train"))[:60]:
        outside = np.ones(record.image.shape[:2], dtype=bool)
        corner = record.image[0, 0].astype(int)
        for thing in record.metadata["objects"]:
            left, top, right, bottom = thing["box"]
            inside = record.image[top:bottom, left:right].astype(int)
            assert (np.abs(inside - np.array(RGB[thing["colour"]])).sum(-1) < 60).mean() > 0.1
            outside[top:bottom, left:right] = False
        assert np.abs(record.image[outside].astype(int) - corner).max() < 30


def test_relations_are_as_they_are_drawn(shapes: Shapes) -> None:
    for record in list(shapes.split("test"))[:60]:
        first, second = (thing["box"] for thing in record.metadata["objects"])
        across, down = (second[i] + second[i + 2] - first[i] - first[i + 2] for i in (0, 1))
        along, aside = (across, down) if record.metadata["axis"] == "horizontal" else (down, across)
        assert along > abs(aside)
        words = ("left of", "左边") if record.metadata["axis"] == "horizontal" else ("above", "上边")
        assert any(word in record.texts[0] for word in words)


def test_sizes_can_be_told_apart(shapes: Shapes) -> None:
    sides: dict[str, list[int]] = {"small": [], "large": []}
    for record in shapes.split("train"):
        for thing in record.metadata["objects"]:
            left, top, right, bottom = thing["box"]
            sides[thing["size"]].append(max(right - left, bottom - top))
    assert max(sides["small"]) < min(sides["large"])


def test_more_images_than_scenes_are_drawn_anew_under_the_same_id() -> None:
    train = Shapes(objects=1, train_size=200, val_size=4, test_size=4, heldout_size=4).split("train")
    ids = [record.image_id for record in train]
    again = ids.index(ids[0], 1)
    assert train[0].texts == train[again].texts
    assert not np.array_equal(train[0].image, train[again].image)


def test_records_are_a_sequence(shapes: Shapes) -> None:
    test = shapes.split("test")
    assert test[-1].image_id == test[199].image_id
    assert [record.image_id for record in test[:3]] == [test[i].image_id for i in range(3)]
    with pytest.raises(IndexError, match="record 200 of 200"):
        test[200]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objects": 4}, "objects 4 is not between 1 and 3"),
        ({"image_size": 16}, "image_size 16 pixels is too small"),
        ({"language": "de"}, "language 'de': Shapes is written in en, zh"),
        ({"colours": ["red", "pink"]}, "colours red, pink: choose one or more of red, green, blue, yellow, purple, cy"),
        ({"colours": []}, r"colours \[\]: choose one or more of red"),
        ({"train_size": -1}, "train_size -1 is negative"),
        ({"objects": 1, "val_size": 70, "test_size": 30}, "leave no scene to train on: there are 72 scenes"),
        ({"objects": 1, "val_size": 1, "test_size": 1, "heldout_size": 99}, "heldout_size 99 is more than the 12"),
    ],
)
def test_impossible_sizes_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Shapes(**options)


def test_only_the_chosen_colours_are_drawn_in_every_split() -> None:
    sizes = {"train_size": 60, "val_size": 20, "test_size": 20, "heldout_size": 20}
    chosen, others = Shapes(colours=["red", "cyan"], **sizes), Shapes(colours=["blue"], **sizes)
    for split in SPLITS:
        assert {colour for colour, _ in things(chosen, split)} == {"red", "cyan"}
        assert {colour for colour, _ in things(others, split)} == {"blue"}
    every = list(Shapes(**sizes).seen[:50])
    assert every == Shapes(colours=None, **sizes).seen[:50]


def test_an_unknown_or_empty_split_lists_those_there_are() -> None:
    shapes = Shapes(train_size=3, val_size=2, test_size=0, heldout_size=0)
    with pytest.raises(DataError, match=r"'test' of shapes is empty. Splits there are: train \(3\), val \(2\)"):
        shapes.split("test")
    with pytest.raises(DataError, match="'dev' of shapes does not exist"):
        shapes.split("dev")


@pytest.mark.parametrize("objects", [1, 2])
def test_sentences_are_read_without_drawing(objects: int, monkeypatch: pytest.MonkeyPatch) -> None:
    train = Shapes(train_size=20, val_size=5, test_size=5, heldout_size=0, objects=objects).split("train")
    whole = list(train)
    monkeypatch.setattr("velm.data.synthetic.shapes.draw", None)
    for place, record in enumerate(whole):
        text_only = train.text_only(place)
        assert (text_only.image_id, text_only.texts, text_only.image) == (record.image_id, record.texts, None)
        objects_of = [{name: thing[name] for name in thing if name != "box"} for thing in record.metadata["objects"]]
        assert text_only.metadata == {"objects": objects_of, "axis": record.metadata["axis"]}


def test_chinese_has_a_grammar_of_its_own() -> None:
    star, ring = Thing("large", "blue", "star"), Thing("small", "red", "ring")
    assert chinese.describe(Scene((star,), None)) == ("一颗蓝色的大五角星", "图中有一颗蓝色的大五角星")
    assert chinese.describe(Scene((star, ring), "horizontal")) == (
        "一颗蓝色的大五角星在一只红色的小圆环的左边",
        "一颗蓝色的大五角星的右边有一只红色的小圆环",
        "从左到右依次是一颗蓝色的大五角星和一只红色的小圆环",
        "一只红色的小圆环在一颗蓝色的大五角星的右边",
        "一只红色的小圆环的左边有一颗蓝色的大五角星",
        "从右到左依次是一只红色的小圆环和一颗蓝色的大五角星",
    )
    three = chinese.describe(Scene((star, ring, star._replace(size="small")), "vertical"))
    assert "从上到下依次是一颗蓝色的大五角星、一只红色的小圆环和一颗蓝色的小五角星" in three
    for text in three:
        assert not text.isascii()
        assert " " not in text


def test_questions_are_english_only() -> None:
    with pytest.raises(ValueError, match="ShapesQuestions is written in en"):
        ShapesQuestions(language="zh")


def test_masks_are_the_pixels_of_the_colour() -> None:
    for record in Shapes(test_size=20).split("test"):
        pixels = np.asarray(record.image).astype(int)
        masks = [object_mask(thing, 64) for thing in record.metadata["objects"]]
        assert not (masks[0] & masks[1]).any()
        for thing, mask in zip(record.metadata["objects"], masks, strict=True):
            left, top, right, bottom = thing["box"]
            assert mask[top:bottom, left:right].sum() == mask.sum() > 0
            inside = pixels[mask]
            colour, background = np.median(inside, axis=0), pixels[0, 0]
            nearer = np.abs(inside - colour).sum(axis=1) <= np.abs(inside - background).sum(axis=1) + 3  # rounding
            assert nearer.all()
