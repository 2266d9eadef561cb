"""Columns are what the pipeline says of the images; a bad image is null and moves no row."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from velm.bulk.columns import Captions, Embeddings
from velm.errors import PipelineError
from velm.pipeline import load

BAD = "There is no image 'nowhere.jpg'."


@pytest.fixture
def images():
    return list(np.random.default_rng(0).integers(0, 256, (4, 32, 40, 3), dtype=np.uint8))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_embeddings(pipeline, images, dtype):
    expected = pipeline.embed_images(images).numpy()
    columns, errors = Embeddings(pipeline, dtype).columns([*images[:2], "nowhere.jpg", *images[2:]], batch_size=2)
    column = columns["embedding"]
    assert column.type == pa.list_(pa.from_numpy_dtype(np.dtype(dtype)), 8)
    assert errors == [None, None, BAD, None, None]
    assert column.is_null().to_pylist() == [False, False, True, False, False]
    found = np.array([each for each in column.to_pylist() if each is not None], np.float32)
    assert np.allclose(found, expected, atol=1e-6 if dtype == "float32" else 1e-3)


def test_captions(pipeline, images):
    options = {"num_beams": 3, "num_return": 2, "max_length": 5}
    expected = pipeline.caption_candidates(images, **options)
    task = Captions(pipeline, **options)
    columns, errors = task.columns(["nowhere.jpg", *images], batch_size=3)
    assert errors == [BAD, None, None, None, None]
    assert columns["captions"].to_pylist() == [None, *([each.text for each in some] for some in expected)]
    assert columns["scores"].to_pylist()[0] is None
    assert np.allclose(columns["scores"].to_pylist()[1:], [[each.score for each in some] for some in expected])
    assert task.options == {"text": None, **options}


def test_a_caption_that_was_not_found_has_no_score(pipeline, images):
    task = Captions(pipeline, must_include=["red", "blue"], max_length=3)
    scores = task.columns(images[:1], batch_size=1)[0]["scores"].to_pylist()
    assert all(score is None or np.isfinite(score) for score in scores[0])


def test_a_text_for_all_images(write_checkpoint, images):
    both = load(write_checkpoint(memory=["image", "text"], losses={"captioning": {}}))
    expected = both.caption(images, ["a red circle"] * 4)
    columns, _ = Captions(both, "a red circle").columns(images, batch_size=4)
    assert [each[0] for each in columns["captions"].to_pylist()] == expected
    with pytest.raises(PipelineError, match="The decoder also reads a text: give one for all images"):
        Captions(both)
    with pytest.raises(PipelineError, match="has no embeddings"):
        Embeddings(load(write_checkpoint(memory=["image"], losses={"captioning": {}})))


def test_models_that_cannot(write_checkpoint, pipeline):
    with pytest.raises(PipelineError, match="The decoder reads no text: leave it out"):
        Captions(pipeline, "a red circle")
    with pytest.raises(PipelineError, match="has no decoder"):
        Captions(load(write_checkpoint(decoder=None, losses={"contrastive": {}})))
    reader = load(write_checkpoint(image_encoder=None, memory=["text"], losses={"captioning": {}}))
    with pytest.raises(PipelineError, match="attends over text: it captions no images in bulk"):
        Captions(reader, "a red circle")
    with pytest.raises(PipelineError, match="num_beams 0"):
        Captions(pipeline, num_beams=0)
