"""The hash of a model is that of what it computes: the same for both precisions, another for other weights."""

from __future__ import annotations

import torch

from velm.pipeline import load, model_hash


def test_equal_for_the_same_model_in_any_precision(write_checkpoint):
    checkpoint = write_checkpoint()
    hashes = {
        model_hash(load(checkpoint)),
        model_hash(load(checkpoint)),
        model_hash(load(checkpoint, precision="bf16")),
    }
    assert len(hashes) == 1
    assert len(hashes.pop()) == 64


def test_other_weights_and_other_image_sizes_are_other_models(pipeline, write_checkpoint):
    before = model_hash(pipeline)
    with torch.no_grad():
        next(pipeline.model.parameters()).flatten()[0] += 1.0
    assert model_hash(pipeline) != before
    assert model_hash(load(write_checkpoint(), image_size=40)) != before
