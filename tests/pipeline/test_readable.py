"""Bad images are kept apart: the others are as without them, and no position moves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from velm.errors import PipelineError
from velm.pipeline import encode_readable


@pytest.fixture
def images():
    return list(np.random.default_rng(0).integers(0, 256, (5, 32, 40, 3), dtype=np.uint8))


def embeddings(pipeline, images, batch_size):
    """Position -> embedding, position -> message."""
    embeds, errors = {}, {}
    for batch in encode_readable(pipeline, images, batch_size=batch_size):
        errors |= {row: str(error) for row, error in batch.errors.items()}
        if batch.encoded is not None:
            embeds |= dict(zip(batch.rows, pipeline.embed_image(batch.encoded), strict=True))
    return embeds, errors


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_positions_stay(pipeline, images, batch_size):
    expected = pipeline.embed_images(images)
    embeds, errors = embeddings(pipeline, [images[0], "nowhere.jpg", *images[1:], 7], batch_size)
    assert errors == {
        1: "There is no image 'nowhere.jpg'.",
        6: "An image is a path, a PIL image or a uint8 array, not int.",
    }
    assert list(embeds) == [0, 2, 3, 4, 5]
    assert torch.allclose(torch.stack(list(embeds.values())), expected, atol=1e-6)


def test_a_batch_of_bad_images_and_a_bad_batch_size(pipeline):
    (batch,) = encode_readable(pipeline, ["a.jpg", "b.jpg"], batch_size=2)
    assert (batch.rows, batch.encoded, list(batch.errors)) == ([], None, [0, 1])
    with pytest.raises(PipelineError, match="batch_size 0 is too small"):
        next(encode_readable(pipeline, [], batch_size=0))
