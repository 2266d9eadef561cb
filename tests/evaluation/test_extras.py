"""Extra metrics in Python equal those of the command line; missing requirements raise before any computation."""

from __future__ import annotations

import json
import sys

import pytest

from velm.cli import main as velm
from velm.data.synthetic.shapes import Shapes
from velm.errors import DataError, PipelineError
from velm.evaluation.evaluate import Extras, evaluate
from velm.evaluation.extras import check_extras
from velm.pipeline import load

DATA = {"dataset": {"name": "shapes", "test_size": 6, "train_size": 9, "image_size": 32}}


@pytest.fixture
def dataset():
    return Shapes(test_size=6, train_size=9, image_size=32)


def test_python_and_the_command_line_agree(write_checkpoint, dataset, tmp_path):
    path, judge = write_checkpoint(data=DATA), write_checkpoint("judge.ckpt", embed_dim=4)
    options = ["--folds", "3", "--clip_score", "--clip_score_model", str(judge), "--novelty", "--compositional"]
    assert velm(["evaluate", str(path), "--output", str(tmp_path / "out"), "--max_length", "3", *options]) == 0
    extras = Extras(
        folds=3, clip_score=True, judge=load(judge), novelty=True, compositional=True, train=dataset.split("train")
    )
    found = evaluate(load(path), dataset.split("test"), extras=extras, max_length=3)
    stored = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert found == pytest.approx({name: value for name, value in stored.items() if "signature" not in name})
    assert {"judged/clip_score", "judged/ref_clip_score", "caption/clip_score", "caption/novel"} <= set(found)


def test_nothing_is_there_unless_asked_for(write_checkpoint, dataset):
    found = evaluate(load(write_checkpoint()), dataset.split("test"), max_length=3)
    assert {name.split("/")[0] for name in found} == {"image_to_text", "text_to_image", "caption"}


def test_missing_requirements_raise_before_anything_is_computed(write_checkpoint, dataset, monkeypatch):
    pipeline, records = load(write_checkpoint()), dataset.split("test")
    monkeypatch.setattr(pipeline, "encode_images", None)
    for extras, words in (
        (Extras(folds=7), "folds 7 of 6 images"),
        (Extras(probe=True, train=records), "The records have no classes"),
        (Extras(templates=["a {}"]), "The records have no classes"),
        (Extras(novelty=True), "give train, the records of that split"),
        (Extras(novelty=True, train=[]), "give train, the records of that split"),
    ):
        with pytest.raises((PipelineError, DataError), match=words):
            evaluate(pipeline, records, extras=extras)
    monkeypatch.setitem(sys.modules, "pycocoevalcap.meteor.meteor", None)
    with pytest.raises(PipelineError, match=r"pip install 'velm\[metrics\]'"):
        evaluate(pipeline, records, extras=Extras(meteor=True))


def test_a_judge_has_to_align_and_the_judged_to_write(write_checkpoint, dataset):
    writer = load(write_checkpoint())
    aligner = load(write_checkpoint("b.ckpt", decoder=None, losses={"contrastive": {}}))
    records = dataset.split("test")
    with pytest.raises(PipelineError, match="no decoder"):
        check_extras(Extras(judge=writer), aligner, records)
    with pytest.warns(UserWarning, match="left out"):
        blind = load(write_checkpoint("c.ckpt", losses={"captioning": {}}))
    with pytest.raises(PipelineError, match="The model that computes CLIPScores was not trained to align"):
        check_extras(Extras(judge=blind), writer, records)
    assert "judged/clip_score" in evaluate(blind, records, extras=Extras(judge=aligner), max_length=3)
