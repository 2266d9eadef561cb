"""CLIPScore by the model's own towers, and novelty, of predictions."""

from __future__ import annotations

from dataclasses import replace

import pytest

from velm.data.base import Record
from velm.data.synthetic.shapes import Shapes
from velm.errors import PipelineError
from velm.evaluation.caption_fit import clip_score_figures, novelty_figures
from velm.evaluation.predictions import Predictions, Written, predict
from velm.metrics import clip_score, ref_clip_score
from velm.pipeline import load


@pytest.fixture
def pipeline(write_checkpoint):
    return load(write_checkpoint())


def test_it_is_what_the_pipeline_says(pipeline):
    found = predict(pipeline, Shapes(test_size=4, image_size=32).split("test"), max_length=4)
    captions = ["a red circle", "", "a star", "a blue square"]
    found = replace(found, written=[replace(w, caption=c) for w, c in zip(found.written, captions, strict=True)])
    figures = clip_score_figures(pipeline, found)
    embeds = pipeline.embed_texts([caption or "a" for caption in captions])
    embeds[1] = 0  # no words, no score
    assert figures["caption/clip_score"] == pytest.approx(float(clip_score(found.image_embeds, embeds).mean()))
    expected = ref_clip_score(found.image_embeds, embeds, found.text_embeds, found.image_ids)
    assert figures["caption/ref_clip_score"] == pytest.approx(float(expected.mean()), abs=1e-6)


def test_a_judge_sees_the_images_itself(pipeline, write_checkpoint):
    records = Shapes(test_size=4, image_size=32).split("test")
    found = predict(pipeline, records, max_length=4)
    judge = load(write_checkpoint("judge.ckpt", decoder=None, losses={"contrastive": {}}, embed_dim=4))
    figures = clip_score_figures(pipeline, found, judge=judge, records=records, batch_size=3)
    written = [row.caption for row in found.written]
    assert all(written)
    image, text = judge.embed_images([record.image for record in records]), judge.embed_texts(written)
    assert figures["judged/clip_score"] == pytest.approx(float(clip_score(image, text).mean()), abs=1e-6)
    assert set(figures) == {"judged/clip_score", "judged/ref_clip_score"}
    itself = clip_score_figures(pipeline, found, judge=pipeline, records=records)
    own = clip_score_figures(pipeline, found)
    assert itself["judged/ref_clip_score"] == pytest.approx(own["caption/ref_clip_score"], abs=1e-6)


def test_models_that_cannot_are_refused(write_checkpoint):
    with pytest.raises(PipelineError, match="no decoder"):
        clip_score_figures(load(write_checkpoint(decoder=None, losses={"contrastive": {}})), Predictions())
    with pytest.raises(PipelineError, match=r"attends over \[image, text\]"):
        clip_score_figures(load(write_checkpoint(memory=["image", "text"])), Predictions())


def test_novelty_by_hand():
    found = Predictions(written=[Written(str(i), None, c, ("x",)) for i, c in enumerate(["A dog.", "a cat", "a cow"])])
    train = [Record("0", None, ("a dog", "the cat")), Record("1", None, ("a sheep",), ("a cow",))]
    assert novelty_figures(found, train) == {"caption/novel": pytest.approx(1 / 3)}
