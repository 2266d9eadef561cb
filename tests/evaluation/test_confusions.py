"""Confusions by hand."""

from __future__ import annotations

import pytest
import torch

from velm.evaluation.confusions import confused_words, hardest_confusions
from velm.evaluation.predictions import GeneratedCaption, Retrieval


def test_the_hardest_by_hand():
    image = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    text = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.9], [1.0, 0.0]])
    found = Retrieval(image, text, torch.tensor([0, 1, 1, 2]), ["a", "b", "c", "d"])
    first, second, third = hardest_confusions(found, 5)
    assert (first.image, first.wrong, first.right) == (2, 1, 3)
    assert first.margin == pytest.approx(0.8 - 0.6)
    assert (second.image, second.wrong, second.right, second.margin) == (0, 3, 0, 0.0)
    assert third.margin == pytest.approx(-1.0)
    assert hardest_confusions(found, 1) == [first]
    assert hardest_confusions(found, 5, block_size=1) == [first, second, third]


def test_one_image_alone_cannot_be_confused():
    assert hardest_confusions(Retrieval(torch.ones(1, 2), torch.ones(2, 2), torch.tensor([0, 0]), ["a", "b"]), 3) == []


def test_confused_words_by_hand():
    def row(caption, *references):
        return GeneratedCaption("x", None, caption, references)

    captions = [
        row("a red circle", "a blue circle", "one blue circle"),
        row("A red star.", "a blue star"),
        row("a red ring", "a red ring", "a blue ring"),  # correct
        row("a ring", "a large ring"),  # a missing word is no confusion
        row("", "a ring"),
        row("the ring in a box", "a ring on a box"),  # function words only
    ]
    assert confused_words(captions, 5) == [("blue", "red", 2)]
