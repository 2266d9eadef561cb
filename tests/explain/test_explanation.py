"""One image explained: every kind of model gives the maps it has, and the sheet shows them."""

from __future__ import annotations

import numpy as np
import pytest

from velm.data.synthetic.shapes import Shapes
from velm.errors import PipelineError
from velm.explain import explain
from velm.explain.drawing import COLUMNS, GAP, SIDE, sheet, veiled
from velm.pipeline import load


@pytest.fixture
def image():
    return Shapes(test_size=1, image_size=32).split("test")[0].image


def test_its_own_caption_is_explained(write_checkpoint, image):
    pipeline = load(write_checkpoint())
    (found,) = explain(pipeline, image, max_length=4)
    assert found.text == pipeline.caption([image], max_length=4)[0]
    assert found.words == tuple(found.text.split())
    assert found.attention.shape == (len(found.words), 4, 4)
    assert found.similarity.shape == (4, 4)
    assert found.saliency is None
    np.testing.assert_array_equal(found.image, image)
    assert found.arrays().keys() == {"attention", "similarity"}


def test_in_bfloat16_the_maps_are_nearly_the_same(write_checkpoint, image):
    checkpoint = write_checkpoint()
    pipelines = load(checkpoint), load(checkpoint, precision="bf16")
    one, two = (explain(pipeline, image, ["a red circle"])[0].arrays() for pipeline in pipelines)
    assert one.keys() == two.keys() == {"attention", "similarity"}
    for name, maps in one.items():
        assert two[name].dtype == np.float32
        assert abs(two[name] - maps).max() < 0.1 * abs(maps).max()


def test_texts_that_are_given_are_explained(write_checkpoint, image):
    first, second = explain(load(write_checkpoint()), image, ["a red circle", "a star"])
    assert (first.text, first.words) == ("a red circle", ("a", "red", "circle"))
    assert second.words == ("a", "star")
    assert not np.array_equal(first.similarity, second.similarity)


def test_what_a_decoder_reads_is_given_and_what_it_writes_explained(write_checkpoint, image):
    translator = load(write_checkpoint(memory=["image", "text"], losses={"captioning": {}}))
    texts = ["a red circle", "a star"]
    found = explain(translator, image, texts, max_length=4)
    assert [each.text for each in found] == translator.caption([image, image], texts, max_length=4)
    assert all(each.similarity is None for each in found)
    assert all(each.attention.sum() < len(each.words) for each in found if each.words)
    with pytest.raises(PipelineError, match=r"attends over a text as well: give its input, texts=\[\.\.\.\]"):
        explain(translator, image)


def test_alignment_alone_takes_a_text(write_checkpoint, image):
    aligner = load(write_checkpoint(decoder=None, losses={"contrastive": {}}))
    (found,) = explain(aligner, image, ["a red circle"])
    assert found.arrays().keys() == {"similarity"}
    with pytest.raises(PipelineError, match="has no decoder"):
        explain(aligner, image)


def test_what_cannot_be_explained(write_checkpoint, image):
    with pytest.raises(PipelineError, match=r"texts\[1\] is ' '; it takes text that is not empty"):
        explain(load(write_checkpoint()), image, ["a star", " "])
    with pytest.raises(PipelineError, match=r"Write \[text\]"):
        explain(load(write_checkpoint()), image, "a red circle")
    blind = load(write_checkpoint(memory=["text"], image_encoder=None, losses={"captioning": {}}))
    with pytest.raises(PipelineError, match="has no image encoder, so there is no image to lay maps over"):
        explain(blind, image, ["a star"])


def test_the_sheet_has_a_tile_for_each_map(write_checkpoint, image):
    (found,) = explain(load(write_checkpoint()), image, ["a small blue square"])  # 1 + 1 + 4 tiles: one row
    (longer,) = explain(load(write_checkpoint()), image, ["a small blue square a"])
    assert sheet(found).width == GAP + COLUMNS * (SIDE + GAP)
    assert sheet(longer).height > sheet(found).height + SIDE


def test_a_veil_is_thin_where_the_map_is_high(image):
    values = np.array([[0.0, 0.0], [0.0, 1.0]])
    white = np.full((8, 8, 3), 255, np.uint8)
    pixels = np.asarray(veiled(white, values))
    assert pixels.shape == (SIDE, SIDE, 3)
    assert pixels[-1, -1].tolist() == [255, 255, 255]
    assert pixels[0, 0].max() < 100
    assert np.asarray(veiled(white, np.ones((2, 2)))).std() < 40  # a flat map shows nothing, and divides by nothing
