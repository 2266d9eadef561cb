"""Questions have one right answer, and the image is needed for it."""

from __future__ import annotations

from velm.data.synthetic.questions import ANSWERS, ask
from velm.data.synthetic.scenes import Thing
from velm.registry import datasets

RED, BLUE = Thing("small", "red", "circle"), Thing("large", "blue", "star")


def test_what_is_asked_of_two_things() -> None:
    assert dict(ask([RED, BLUE], "horizontal")) == {
        "what size is the red circle ?": "small",
        "what colour is the small circle ?": "red",
        "what shape is the small red thing ?": "circle",
        "what size is the blue star ?": "large",
        "what colour is the large star ?": "blue",
        "what shape is the large blue thing ?": "star",
        "is there a red circle ?": "yes",
        "is there a blue star ?": "yes",
        "is there a blue circle ?": "no",
        "is there a red star ?": "no",
        "what shape is left of the blue star ?": "circle",
        "what shape is right of the red circle ?": "star",
    }


def test_what_two_things_share_is_not_asked() -> None:
    asked = dict(ask([RED, RED._replace(colour="green")], "vertical"))
    assert "what colour is the small circle ?" not in asked
    assert asked["what shape is above the green circle ?"] == "circle"
    twins = dict(ask([RED, RED._replace(size="large")], "vertical"))
    assert "what size is the red circle ?" not in twins
    assert not any(" above " in question for question in twins)
    assert "is there a red circle ?" in twins


def test_records_carry_a_target_for_every_text() -> None:
    train = datasets.build({"name": "shapes_questions", "train_size": 30}).split("train")
    assert len(train) == 30
    for record in train:
        assert len(record.texts) == len(record.targets) == len(set(record.texts)) >= 8
        assert set(record.targets) <= set(ANSWERS)
    answers = [answer for record in train for question, answer in zip(record.texts, record.targets, strict=True)
               if question.startswith("is there")]  # fmt: skip
    assert 0.3 < answers.count("yes") / len(answers) < 0.7


def test_questions_are_read_without_drawing() -> None:
    records = datasets.build({"name": "shapes_questions", "train_size": 5}).split("train")
    for place, record in enumerate(records):
        text_only = records.text_only(place)
        assert (text_only.texts, text_only.targets, text_only.image) == (record.texts, record.targets, None)
