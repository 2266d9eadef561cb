"""The pointing game by hand, and on drawn scenes with maps of known peaks."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import pointing
from benchmarks.pointing import chance, hits, play_attention, play_similarity
from velm.data.synthetic.shapes import Shapes
from velm.explain.attention import WordMaps
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


def test_each_word_is_compared_with_the_box_of_its_own_object(records, write_checkpoint, monkeypatch):
    """A decoder that attends to the centre of the object it names always hits, one that swaps the objects never."""

    def maps_of(swapped):
        queue = iter(records)

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
        monkeypatch.setattr(pointing, "word_maps", maps_of(swapped))
        found = play_attention(pipeline, records, batch_size=4)
        assert {kind: (score.hits, score.rounds) for kind, score in found.items()} == dict.fromkeys(
            ("size", "colour", "shape"), (share, 12)
        )


def test_it_is_played_on_the_checkpoints_own_scenes(write_checkpoint, capsys) -> None:
    assert pointing.main([str(write_checkpoint()), "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert {f"attention of the {kind}" for kind in ("size", "colour", "shape")} | {"similarity map"} == set(scores)
    assert scores["similarity map"]["rounds"] == 12
    assert pointing.main([str(write_checkpoint())]) == 0
    assert "similarity map" in capsys.readouterr().out


def test_similarity_is_of_each_object(records, write_checkpoint):
    score = play_similarity(load(write_checkpoint()), records)
    assert score.rounds == 12
    assert 0 < score.chance < 0.5
    assert 0 <= score.hits <= 1


def test_a_decoder_without_attention_has_no_score(records, write_checkpoint, monkeypatch):
    monkeypatch.setattr(pointing, "word_maps", lambda pipeline, image, texts: [None] * len(texts))
    assert play_attention(load(write_checkpoint()), records) == {}
