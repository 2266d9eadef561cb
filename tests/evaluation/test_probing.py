"""Probes of a frozen encoder: features before projection, decay chosen on training images only."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from velm.data.base import Record
from velm.errors import DataError, PipelineError
from velm.evaluation.probing import DECAYS, choose_decay, image_features, probe_metrics
from velm.pipeline import load

COLOURS = {"red": (220, 30, 30), "blue": (30, 30, 220), "green": (30, 180, 30)}


def records(each: int, seed: int, names=("red", "blue", "green")) -> list[Record]:
    rng = np.random.default_rng(seed)

    def painted(name: str) -> np.ndarray:
        return (rng.integers(-25, 25, (32, 32, 3)) + COLOURS[name]).astype(np.uint8)

    return [
        Record(f"{name}{i}", painted(name), (name,), metadata={"class": name}) for i in range(each) for name in names
    ]


def test_untrained_features_separate_colours(write_checkpoint):
    found = probe_metrics(load(write_checkpoint()), records(8, 0), records(4, 1), batch_size=5)
    assert found == {"linear_probe/top1": 1.0, "nearest_neighbours/top1": 1.0}


def test_classes_are_matched_by_name(write_checkpoint):
    pipeline = load(write_checkpoint())
    found = probe_metrics(pipeline, records(8, 0), records(4, 1, ("green", "red")))
    assert found["linear_probe/top1"] == 1.0
    with pytest.raises(DataError, match="The class 'green' is not among the 2 classes"):
        probe_metrics(pipeline, records(8, 0, ("red", "blue")), records(4, 1))
    with pytest.raises(DataError, match="The records have no classes"):
        probe_metrics(pipeline, records(8, 0), [Record("x", None, ("a",))])


def test_features_are_of_the_encoder_and_not_of_the_batch(write_checkpoint):
    pipeline = load(write_checkpoint())
    features = image_features(pipeline, records(3, 0), batch_size=2)
    assert features.shape == (9, 16)  # the encoder's width; the joint space has 8
    assert torch.allclose(features, image_features(pipeline, records(3, 0), batch_size=9), atol=1e-5)


def test_the_decay_is_one_of_the_candidates():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    features = torch.eye(3)[labels] + torch.randn(60, 3, generator=generator)
    assert choose_decay(features, labels) in DECAYS
    assert choose_decay(features, labels, [0.3]) == 0.3
    with pytest.raises(DataError, match="There are 4 images to train on; at least 5 are required"):
        choose_decay(features[:4], labels[:4])


def test_a_model_without_images_is_refused(write_checkpoint):
    changes = {"memory": ["text"], "losses": {"captioning": {}}, "image_encoder": None}
    with pytest.raises(PipelineError, match="has no image encoder"):
        image_features(load(write_checkpoint(**changes)), records(1, 0))
