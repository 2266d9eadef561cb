"""The pointing game by hand, and on drawn scenes with maps whose peaks are known."""

from __future__ import annotations

import pytest
import torch

from velm.data.synthetic.shapes import Shapes
from velm.explain import pointing
from velm.explain.attention import WordMaps
from velm.explain.pointing import chance, hits, play_attention, play_similarity
from velm.pipeline import load


def test_hits_and_chance_by_hand():
    maps = torch.zeros(3, 2, 4)
    maps[0, 0, 1] = maps[1, 1, 3] = maps[2, 0, 0] = 1.0
    boxes = torch.tensor([[0.25, 0.0, 0.5, 0.5], [0.0, 0.0, 0.5, 0.5], [0.2, 0.3, 0.9, 1.0]])
    assert hits(maps, boxes).tolist() == [True, False, False]
    assert chance(boxes, (2, 4)).tolist() == [1 / 8, 2 / 8, 3 / 8]


@pytest.fixture
def records():
    return Shapes(test_size=6, image_size=64).split("test")


def test_words_are_held_against_their_own_object(records, write_checkpoint, monkeypatch):
    """A decoder that looks at the middle of the object that it names finds everything, one that swaps them nothing."""
    todo = list(records)

    def looked(swapped):
        queue = iter(todo)

        def word_maps(pipeline, image, texts):
            found = []
            for text in texts:
                first, second = (each["box"] for each in next(queue).metadata["objects"])
                words, maps, box = tuple(text.split()), [], second if swapped else first
                for word in words:
                    values = torch.zeros(64, 64)
                    values[(box[1] + box[3]) // 2, (box[0] + box[2]) // 2] = 1
                    maps.append(values)
                    if pointing.KINDS.get(word) == "shape":
                        box = first if swapped else second
                found.append(WordMaps(words, torch.stack(maps)))
            return found

        return word_maps

    pipeline = load(write_checkpoint())
    for swapped, share in ((False, 1.0), (True, 0.0)):
        monkeypatch.setattr(pointing, "word_maps", looked(swapped))
        found = play_attention(pipeline, records, batch_size=4)
        assert {kind: (score.hits, score.rounds) for kind, score in found.items()} == dict.fromkeys(
            ("size", "colour", "shape"), (share, 12)
        )


def test_similarity_is_of_each_object(records, write_checkpoint):
    score = play_similarity(load(write_checkpoint()), records)
    assert score.rounds == 12
    assert 0 < score.chance < 0.5
    assert 0 <= score.hits <= 1


def test_a_decoder_that_does_not_say_plays_no_game(records, write_checkpoint, monkeypatch):
    monkeypatch.setattr(pointing, "word_maps", lambda pipeline, image, texts: [None] * len(texts))
    assert play_attention(load(write_checkpoint()), records) == {}
