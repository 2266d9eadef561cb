"""Similarity maps: cosines on the grid, and none where there is nothing to compare."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from velm.data.synthetic.shapes import Shapes
from velm.errors import PipelineError
from velm.explain.similarity import similarity_maps
from velm.pipeline import load

TEXTS = ["a small blue square", "a red circle"]


@pytest.fixture
def images():
    return [record.image for record in Shapes(test_size=2, image_size=32).split("test")]


def test_it_is_the_cosine_of_each_position(write_checkpoint, images):
    pipeline = load(write_checkpoint())
    image = next(pipeline.encode_images(images, batch_size=2))
    found = similarity_maps(pipeline, image, TEXTS)
    assert found.shape == (2, 4, 4)
    with torch.inference_mode():
        position = pipeline.model.image_projection(image.features[1, 6])
    expected = functional.cosine_similarity(position, pipeline.embed_texts(TEXTS)[1], dim=0)
    assert found[1, 1, 2].item() == pytest.approx(expected.item(), abs=1e-5)
    assert found.abs().max() <= 1


def test_what_cannot_be_compared(write_checkpoint, images):
    pipeline = load(write_checkpoint())
    image = next(pipeline.encode_images(images, batch_size=2))
    with pytest.raises(PipelineError, match="got 2 images and 1 texts"):
        similarity_maps(pipeline, image, TEXTS[:1])
    image.grid = None
    with pytest.raises(PipelineError, match="gives no grid"):
        similarity_maps(pipeline, image, TEXTS)
    with pytest.warns(UserWarning, match="left out"):
        writer = load(write_checkpoint(losses={"captioning": {}}))
    with pytest.raises(PipelineError, match="not trained to align"):
        similarity_maps(writer, image, TEXTS)
