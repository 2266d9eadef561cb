"""Evaluation: an image matches all of its texts, captions against references, each image encoded once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from velm.data.base import Record
from velm.errors import DataError, PipelineError
from velm.evaluation.evaluate import evaluate, prediction_metrics
from velm.evaluation.predictions import Captions, GeneratedCaption, Predictions, Retrieval, predict
from velm.metrics import retrieval_metrics
from velm.pipeline import load

RETRIEVAL = {
    f"{way}/{name}"
    for way in ("image_to_text", "text_to_image")
    for name in ("recall@1", "recall@5", "recall@10", "median_rank", "mean_rank", "mrr")
}
CAPTION = {
    f"caption/{name}"
    for name in (
        *(f"bleu{n}" for n in range(1, 5)),
        "rouge_l",
        "cider",
        "exact_match",
        "distinct",
        "distinct1",
        "distinct2",
        "length",
    )
}


def translated(records):
    return [
        Record(r.image_id, r.image, r.texts[:2] + r.texts[:1], tuple(f"target {i} {k}" for k in range(3)))
        for i, r in enumerate(records)
    ]


def test_the_names_are_those_of_metrics_json(pipeline, records):
    found = evaluate(pipeline, records, max_length=5)
    assert set(found) == RETRIEVAL | CAPTION
    assert all(isinstance(value, float) for value in found.values())


def test_the_batch_size_changes_nothing(pipeline, records):
    one, all_at_once = (predict(pipeline, records, batch_size=b, max_length=5) for b in (1, 7))
    assert one.captions == all_at_once.captions
    assert torch.allclose(one.retrieval.image_embeds, all_at_once.retrieval.image_embeds, atol=1e-5)
    assert torch.allclose(one.retrieval.text_embeds, all_at_once.retrieval.text_embeds, atol=1e-5)


def test_predictions_agree_with_the_pipeline(pipeline, records):
    found = predict(pipeline, records, batch_size=3, num_beams=2)
    images = [record.image for record in records]
    retrieval = found.retrieval
    assert found.captions.texts == pipeline.caption(images, num_beams=2)
    assert found.captions.references == [record.texts for record in records]
    assert torch.allclose(retrieval.image_embeds, pipeline.embed_images(images), atol=1e-5)
    texts = [text for record in records for text in record.texts]
    assert torch.allclose(retrieval.text_embeds, pipeline.embed_texts(texts), atol=1e-5)
    expected = retrieval_metrics(retrieval.image_embeds, retrieval.text_embeds, retrieval.image_ids)
    assert prediction_metrics(found).items() >= expected.items()


def test_the_gallery_may_hold_the_first_texts_only(pipeline, records):
    found = predict(pipeline, records, texts_per_image=2, max_length=3)
    assert found.retrieval.image_ids.tolist() == [i for i in range(7) for _ in range(2)]
    assert found.captions.references == [record.texts for record in records]  # all of them


def test_each_image_is_encoded_once(pipeline, records):
    seen = []
    hook = pipeline.model.image_encoder.register_forward_hook(lambda m, args, out: seen.append(len(args[0])))
    evaluate(pipeline, records, batch_size=4, max_length=3)
    hook.remove()
    assert seen == [4, 3]


def test_an_image_matches_all_of_its_texts_by_hand():
    eye = torch.eye(3)
    found = prediction_metrics(Predictions(Retrieval(eye, eye[[0, 1, 1, 2]], torch.tensor([0, 1, 1, 2]), [""] * 4)))
    assert found["image_to_text/recall@1"] == found["text_to_image/recall@1"] == 1.0
    assert "caption/bleu4" not in found


def test_exact_match_by_hand():
    rows = [
        GeneratedCaption("0", None, "a red circle", ("A circle that is red.", "A red circle")),
        GeneratedCaption("1", None, "a red circle", ("a blue circle",)),
    ]
    found = prediction_metrics(Predictions(captions=Captions(rows)))
    assert found["caption/exact_match"] == 0.5
    assert found["caption/distinct"] == 0.5
    assert set(found) == CAPTION


def test_alignment_only_and_captioning_only(write_checkpoint, records):
    aligner = load(write_checkpoint(decoder=None, losses={"contrastive": {}}))
    assert set(evaluate(aligner, records)) == RETRIEVAL
    with pytest.warns(UserWarning, match="left out"):
        writer = load(write_checkpoint(losses={"captioning": {}}))
    assert set(evaluate(writer, records, max_length=3)) == CAPTION


@pytest.mark.parametrize("memory", [["text"], ["image", "text"]])
def test_text_in_the_memory_is_held_against_targets(write_checkpoint, records, memory):
    changes = {"memory": memory, "losses": {"captioning": {}}, "image_encoder": None}
    if "image" in memory:
        del changes["image_encoder"]
    translator = load(write_checkpoint(**changes))
    rows = translated(records)
    found = predict(translator, rows, batch_size=2, max_length=4)
    generated = found.captions.rows
    assert len(generated) == 14  # two different texts an image; the third is the first again
    assert generated[0].references == ("target 0 0", "target 0 2")
    assert generated[3].references == ("target 1 1",)
    assert generated[3].text == rows[1].texts[1]
    texts = [text for row in rows for text in row.texts[:2]]
    images = [row.image for row in rows for _ in range(2)] if "image" in memory else None
    assert found.captions.texts == translator.caption(images, texts, max_length=4)
    assert set(prediction_metrics(found)) == CAPTION

    with pytest.raises(DataError, match=r"has no target, and the decoder attends over the text: name the column"):
        evaluate(translator, records)


def test_targets_are_the_references_where_there_are_any(pipeline, records):
    found = predict(pipeline, translated(records), max_length=3)
    assert found.captions.rows[2].references == ("target 2 0", "target 2 1", "target 2 2")


def test_a_missing_image_among_others_is_black(pipeline, records):
    found = predict(pipeline, [records[0], Record("x", None, ("a star",))], max_length=3)
    black = pipeline.embed_images([np.zeros((32, 32, 3), np.uint8)])
    assert torch.allclose(found.retrieval.image_embeds[1:], black, atol=1e-5)


def test_what_cannot_be_evaluated(pipeline, records):
    with pytest.raises(DataError, match="no records to evaluate on"):
        evaluate(pipeline, [])
    with pytest.raises(DataError, match="texts_per_image 0 is too small"):
        evaluate(pipeline, records, texts_per_image=0)
    with pytest.raises(DataError, match="batch_size 0 is too small"):
        evaluate(pipeline, records, batch_size=0)
    with pytest.raises(PipelineError, match=r"Unknown \['beams'\]"):
        evaluate(pipeline, records, beams=3)
    with pytest.raises(DataError, match="None of the 1 records has an image"):
        evaluate(pipeline, [Record("x", None, ("a",))])
    with pytest.raises(DataError, match="Record 'x' has no caption"):
        evaluate(pipeline, [Record("x", np.zeros((32, 32, 3), np.uint8), ())])
