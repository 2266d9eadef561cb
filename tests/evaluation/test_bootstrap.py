"""Intervals: a draw equal to the split gives its metrics, any other draw those of its images."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from velm import metrics
from velm.evaluation import bootstrap
from velm.evaluation.bootstrap import differences, intervals, resample
from velm.evaluation.evaluate import prediction_metrics
from velm.evaluation.predictions import Captions, GeneratedCaption, Predictions, Retrieval
from velm.metrics.captioning import caption_scores
from velm.metrics.retrieval import RetrievalRanks

NO_INTERVAL = {"caption/distinct", "caption/distinct1", "caption/distinct2"}  # resampling duplicates captions

REFERENCES = [("a red circle", "a circle that is red"), ("a blue square",), ("two rings", "a ring"), ("a star .",)]
CAPTIONS = ["a red circle", "a blue red circle", "", "the the star star"]


@pytest.fixture
def predictions():
    torch.manual_seed(0)
    ids = torch.tensor([0, 0, 1, 2, 2, 2, 3])
    pairs = zip(CAPTIONS, REFERENCES, strict=True)
    captions = Captions([GeneratedCaption(str(i), None, c, r) for i, (c, r) in enumerate(pairs)])
    return Predictions(Retrieval(torch.randn(4, 3), torch.randn(7, 3), ids, [""] * 7), captions)


def ranks_of(predictions):
    found = predictions.retrieval
    return metrics.retrieval_ranks(found.image_embeds, found.text_embeds, found.image_ids)


def draws(predictions, **options):
    scores = caption_scores(predictions.captions.texts, predictions.captions.references)
    return resample(predictions, {"": ranks_of(predictions)}, scores, **options)


def counted(monkeypatch, counts):
    monkeypatch.setattr(bootstrap, "_draws", lambda *_: iter([np.array([counts], dtype=np.float64)]))


def test_the_split_itself_gives_its_metrics(predictions, monkeypatch):
    counted(monkeypatch, [1, 1, 1, 1])
    found, expected = draws(predictions), prediction_metrics(predictions)
    assert found.keys() == expected.keys() - NO_INTERVAL
    for name, values in found.items():
        assert values[0] == pytest.approx(expected[name]), name


def test_a_draw_by_hand(predictions, monkeypatch):
    counted(monkeypatch, [2, 0, 0, 2])
    found = draws(predictions)
    ranks = ranks_of(predictions)
    text_ranks = ranks.text_to_image[[0, 1, 0, 1, 6, 6]]
    assert found["text_to_image/recall@1"][0] == pytest.approx(float((text_ranks <= 1).float().mean()))
    assert found["text_to_image/median_rank"][0] == float(text_ranks.median())
    assert found["image_to_text/median_rank"][0] == float(ranks.image_to_text[[0, 0, 3, 3]].median())
    captions, right = [CAPTIONS[i] for i in (0, 0, 3, 3)], [REFERENCES[i] for i in (0, 0, 3, 3)]
    assert [found[f"caption/bleu{n}"][0] for n in (1, 2, 3, 4)] == pytest.approx(metrics.bleu(captions, right))
    assert found["caption/rouge_l"][0] == pytest.approx(metrics.rouge_l(captions, right))
    assert found["caption/exact_match"][0] == 0.5


def test_a_share_has_the_interval_of_a_binomial():
    """1.96 sqrt(p (1 - p) / n), which the bootstrap of a mean comes to."""
    found = Predictions(Retrieval(torch.eye(400), torch.eye(400).roll(1, 0), torch.arange(400), [""] * 400))
    rank = torch.where(torch.arange(400) < 100, 1, 3)
    low, high = intervals(resample(found, {"": RetrievalRanks(rank, rank)}, None))["image_to_text/recall@1"]
    half = 1.96 * (0.25 * 0.75 / 400) ** 0.5
    assert low == pytest.approx(0.25 - half, abs=0.006)
    assert high == pytest.approx(0.25 + half, abs=0.006)


def test_the_seed_decides_and_blocks_do_not(predictions, monkeypatch):
    one, again, other = (draws(predictions, resamples=30, seed=seed) for seed in (0, 0, 1))
    monkeypatch.setattr(bootstrap, "BLOCK", 30)
    for name in one:
        np.testing.assert_array_equal(one[name], again[name])
    assert any((one[name] != other[name]).any() for name in one)
    assert all(len(values) == 30 for values in one.values())


def test_differences_are_taken_draw_by_draw():
    noise = np.random.default_rng(0).normal(size=1000)
    low, high = differences({"a": noise, "b": noise}, {"a": noise + 0.1, "c": noise})["a"]
    assert low == pytest.approx(0.1)
    assert high == pytest.approx(0.1)
    assert "b" not in differences({"b": noise}, {"c": noise})


def test_several_captions_of_an_image_are_drawn_together(monkeypatch):
    rows = [GeneratedCaption("x", t, c, ("a dog",)) for t, c in (("ein Hund", "a dog"), ("Hund", "dog"))]
    rows.append(GeneratedCaption("y", "Katze", "a cat", ("a cat",)))
    captions = Captions(rows)
    counted(monkeypatch, [1, 0])
    found = resample(Predictions(captions=captions), {}, caption_scores(captions.texts, captions.references))
    assert found["caption/exact_match"][0] == 0.5


def test_too_few_resamples(predictions):
    with pytest.raises(ValueError, match="resamples 0 is too small"):
        draws(predictions, resamples=0)
