"""CLIPScore by the model's own embeddings and by a judge; novelty."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from velm.data.base import Record
from velm.data.synthetic.shapes import Shapes
from velm.errors import PipelineError
from velm.evaluation.clip_score import clip_score_metrics, judge_metrics
from velm.evaluation.extras import novelty_metrics
from velm.evaluation.predictions import Captions, GeneratedCaption, predict
from velm.metrics import clip_score, ref_clip_score
from velm.pipeline import load


def test_predictions_agree_with_the_pipeline(pipeline):
    found = predict(pipeline, Shapes(test_size=4, image_size=32).split("test"), max_length=4)
    captions = ["a red circle", "", "a star", "a blue square"]
    rows = [replace(row, caption=caption) for row, caption in zip(found.captions.rows, captions, strict=True)]
    retrieval = found.retrieval
    scores = clip_score_metrics(pipeline, Captions(rows), retrieval.image_embeds)
    embeds = pipeline.embed_texts([caption or "a" for caption in captions])
    embeds[1] = 0  # no words, no score
    assert scores["caption/clip_score"] == pytest.approx(float(clip_score(retrieval.image_embeds, embeds).mean()))
    expected = ref_clip_score(retrieval.image_embeds, embeds, retrieval.text_embeds, retrieval.image_ids)
    assert scores["caption/ref_clip_score"] == pytest.approx(float(expected.mean()), abs=1e-6)


def test_a_judge_sees_the_images_itself(pipeline, write_checkpoint):
    records = Shapes(test_size=4, image_size=32).split("test")
    found = predict(pipeline, records, max_length=4)
    judge = load(write_checkpoint("judge.ckpt", decoder=None, losses={"contrastive": {}}, embed_dim=4))
    captions = found.captions
    scores = judge_metrics(pipeline, captions, judge=judge, records=records, batch_size=3)
    assert all(captions.texts)
    image, text = judge.embed_images([record.image for record in records]), judge.embed_texts(captions.texts)
    assert scores["judged/clip_score"] == pytest.approx(float(clip_score(image, text).mean()), abs=1e-6)
    assert set(scores) == {"judged/clip_score", "judged/ref_clip_score"}
    itself = judge_metrics(pipeline, captions, judge=pipeline, records=records)
    own = clip_score_metrics(pipeline, captions, found.retrieval.image_embeds)
    assert itself["judged/ref_clip_score"] == pytest.approx(own["caption/ref_clip_score"], abs=1e-6)


def test_models_that_cannot_are_refused(write_checkpoint):
    with pytest.raises(PipelineError, match="no decoder"):
        clip_score_metrics(
            load(write_checkpoint(decoder=None, losses={"contrastive": {}})), Captions([]), torch.ones(1, 2)
        )
    with pytest.raises(PipelineError, match=r"attends over \[image, text\]"):
        clip_score_metrics(load(write_checkpoint(memory=["image", "text"])), Captions([]), torch.ones(1, 2))


def test_novelty_by_hand():
    rows = [GeneratedCaption(str(i), None, c, ("x",)) for i, c in enumerate(["A dog.", "a cat", "a cow"])]
    train = [Record("0", None, ("a dog", "the cat")), Record("1", None, ("a sheep",), ("a cow",))]
    assert novelty_metrics(Captions(rows), train) == {"caption/novel": pytest.approx(1 / 3)}
