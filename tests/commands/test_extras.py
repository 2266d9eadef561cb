"""Figures of `velm evaluate` that are asked for: all of them run, and what cannot be had is told first."""

from __future__ import annotations

import json
import sys

import pytest
from PIL import Image

from velm.cli import main as velm
from velm.evaluation.prompts import Templates
from velm.version import __version__

FAST = ["--max_length", "3"]


@pytest.fixture
def run(write_checkpoint, tmp_path):
    def run(*options, **changes):
        out = tmp_path / "out"
        data = {"dataset": {"name": "shapes", "test_size": 6, "train_size": 9, "image_size": 32}}
        checkpoint = write_checkpoint(data=data, **changes)
        code = velm(["evaluate", str(checkpoint), "--output", str(out), *options])
        return code, json.loads((out / "metrics.json").read_text()) if code == 0 else None

    return run


@pytest.fixture
def folder(tmp_path):
    for split in ("train", "test"):
        for colour in ("red", "blue"):
            for number in range(4):
                path = tmp_path / "data" / split / colour / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (32, 32), colour).save(path)
    return f"--data.dataset={{name: image_folder, path: {tmp_path / 'data'}}}"


def test_nothing_is_there_unless_asked_for(run):
    _, scores = run(*FAST)
    assert {name.split("/")[0] for name in scores} == {"image_to_text", "text_to_image", "caption", "signature"}
    assert not {"caption/novel", "caption/clip_score", "caption/meteor"} & set(scores)


def test_everything_at_once(run):
    code, scores = run(*FAST, "--folds", "3", "--clip_score", "--novelty", "--compositional")
    assert code == 0
    names = {"folds/image_to_text/recall@1", "folds/text_to_image/mrr", "caption/clip_score", "caption/ref_clip_score"}
    assert names | {"caption/novel", "compositional/order", "compositional/order/captioner"} <= set(scores)
    assert scores["caption/novel"] == 1  # an untrained model


def test_classes_have_zero_shot_figures_and_probes_when_asked_for(run, folder):
    _, scores = run(*FAST, folder)
    assert 0 <= scores["zero_shot/top1"] <= 1
    assert "linear_probe/top1" not in scores
    _, scores = run(*FAST, folder, "--probe", "--template", "{}", "--template", "a {}")
    assert scores["linear_probe/top1"] == scores["nearest_neighbours/top1"] == 1


def test_prompts_and_class_names_of_files_are_read_and_stated(run, folder, tmp_path):
    (tmp_path / "templates.json").write_text('{"cifar10": ["a {c}", "a large {c}", "{c}"]}')
    (tmp_path / "names.json").write_text('{"red": "star", "blue": "circle"}')
    templates, names = f"{tmp_path / 'templates.json'}#cifar10", str(tmp_path / "names.json")
    _, scores = run(*FAST, folder, "--templates", templates, "--class_names", names, "--prefix", "a red")
    assert 0 <= scores["zero_shot/mean_per_class_recall"] <= 1
    stated = {name.removeprefix("signature/"): value for name, value in scores.items() if "signature" in name}
    assert stated == {
        f"velm:{__version__}": 1, "image_size": 32, "resize:crop": 1, "interpolation:bilinear": 1, "decode:scaled": 1,
        "crop_rounding:down": 1, "tokenize:auto": 1, "max_length": 3,
        "prefix:a red": 1, f"templates:{templates}": 3, f"class_names:{names}": 2,
        f"templates_sha256:{Templates.of(['a {}', 'a large {}', '{}']).digest}": 1,
    }  # fmt: skip
    _, scores = run(*FAST, folder, "--texts_per_image", "1")
    assert scores["signature/templates:velm"] == 5
    assert scores["signature/class_names:data"] == scores["signature/texts_per_image"] == 1


def test_java_that_fails_loses_no_other_figure(run, monkeypatch):
    from velm import metrics
    from velm.metrics import java

    def fail(*_, **__):
        raise java.JavaMissingError("no network")

    monkeypatch.setattr(java, "require_java", lambda *_: None)
    monkeypatch.setattr(metrics, "meteor", lambda *_, **__: 0.25, raising=False)
    monkeypatch.setattr(metrics, "spice", fail, raising=False)
    with pytest.warns(UserWarning, match="no network"):
        code, scores = run(*FAST, "--meteor", "--spice")
    assert code == 0
    assert scores["caption/meteor"] == 0.25
    assert "caption/spice" not in scores


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--folds", "7"], "folds 7 of 6 images"),
        (["--probe"], "The records have no classes"),
        (["--template", "a {}"], "The records have no classes"),
        (["--class_names", "nowhere.txt"], "--class_names nowhere.txt: cannot read the file 'nowhere.txt'"),
        (["--templates", "open_clip:cifar"], "open_clip has no set 'cifar'"),
        (["--templates", "a.txt", "--template", "a {}"], "both name the prompts: give one of them"),
    ],
)
def test_what_cannot_be_had_is_told_first(run, capsys, options, words):
    assert run(*options)[0] == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("velm evaluate: ")
    assert words in captured.err


def test_a_missing_package_is_told_first(run, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocoevalcap.meteor.meteor", None)
    assert run("--meteor")[0] == 2
    assert "pip install 'velm[metrics]'" in capsys.readouterr().err


def test_a_checkpoint_that_cannot_judge_is_refused(run, capsys, write_checkpoint):
    with pytest.warns(UserWarning, match="text_encoder is left out"):
        writer = write_checkpoint("writer.ckpt", losses={"captioning": {}})
    assert run("--clip_score_model", str(writer))[0] == 2
    assert "The model that computes CLIPScores was not trained to align" in capsys.readouterr().err
    assert run("--clip_score_model", "nowhere.ckpt")[0] == 2
    assert "No checkpoint at nowhere.ckpt" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--clip_score", "--novelty", "--meteor"])
def test_a_model_that_does_not_write_is_refused(run, capsys, monkeypatch, option):
    monkeypatch.setattr("velm.metrics.java.require_java", lambda *_: None)
    assert run(option, decoder=None, losses={"contrastive": {}})[0] == 2
    assert "no decoder" in capsys.readouterr().err
