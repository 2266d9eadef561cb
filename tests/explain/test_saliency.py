"""Integrated gradients through captum: complete, for either fit; and a message where captum is not there."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from velm.data.synthetic.shapes import Shapes
from velm.errors import MissingPackageError, PipelineError
from velm.explain.saliency import saliency_map
from velm.generation import log_likelihood
from velm.pipeline import load

TEXT = "a small blue square"


@pytest.fixture
def image():
    return Shapes(test_size=1, image_size=32).split("test")[0].image


def grey(pipeline):
    """The image that the encoder sees as zeros, near enough."""
    value = -pipeline.model.image_shift / pipeline.model.image_scale
    return value.round().to(torch.uint8).expand(3, 32, 32).permute(1, 2, 0).numpy()


def test_attributions_sum_to_the_difference_of_cosines(write_checkpoint, image):
    pytest.importorskip("captum", reason="pip install 'velm[explain]'")
    pipeline = load(write_checkpoint())
    found = saliency_map(pipeline, image, TEXT, steps=256)
    assert found.shape == (32, 32)
    this, none = pipeline.score([image, grey(pipeline)], [TEXT])[:, 0]
    assert found.sum().item() == pytest.approx((this - none).item(), abs=0.02)
    assert not found.requires_grad


def test_a_captioner_explains_its_likelihood(write_checkpoint, image):
    pytest.importorskip("captum", reason="pip install 'velm[explain]'")
    with pytest.warns(UserWarning, match="left out"):
        pipeline = load(write_checkpoint(losses={"captioning": {}}))
    found = saliency_map(pipeline, image, TEXT, steps=256)
    seen = next(pipeline.encode_images([image, grey(pipeline)], batch_size=2))
    tokens, mask = pipeline.tokenize([TEXT, TEXT])
    this, none = log_likelihood(pipeline.model.decoder, tokens, mask, seen.features)
    assert found.sum().item() == pytest.approx((this - none).item(), abs=0.05)


def test_pixels_that_nobody_reads_have_no_part(write_checkpoint):
    """Equal to the grey baseline, a pixel has nothing to add."""
    pytest.importorskip("captum", reason="pip install 'velm[explain]'")
    pipeline = load(write_checkpoint())
    image = np.array(grey(pipeline))
    image[:8, :8] = 255
    found = saliency_map(pipeline, image, TEXT)
    assert found[:8, :8].abs().max() > 20 * found[8:, 8:].abs().max()


def test_without_captum_the_extra_is_named(write_checkpoint, image, monkeypatch):
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(MissingPackageError, match=r"Saliency needs captum .*: pip install 'velm\[explain\]'"):
        saliency_map(load(write_checkpoint()), image, TEXT)


def test_what_has_no_fit(write_checkpoint, image):
    pytest.importorskip("captum", reason="pip install 'velm[explain]'")
    with pytest.raises(PipelineError, match="steps 0 is too small"):
        saliency_map(load(write_checkpoint()), image, TEXT, steps=0)
    translator = load(write_checkpoint(memory=["image", "text"], losses={"captioning": {}}))
    with pytest.raises(PipelineError, match=r"this decoder attends over \[image, text\]"):
        saliency_map(translator, image, TEXT)
