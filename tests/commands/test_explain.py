"""`velm explain`: a sheet and arrays for each sentence."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from PIL import Image

from velm.cli import main as velm
from velm.data.synthetic.shapes import Shapes


@pytest.fixture
def scene(tmp_path):
    Image.fromarray(Shapes(test_size=1, image_size=32).split("test")[0].image).save(tmp_path / "scene.png")
    return str(tmp_path / "scene.png")


def test_a_sheet_and_arrays_are_written(write_checkpoint, scene, tmp_path, capsys):
    arguments = ["explain", str(write_checkpoint()), scene, "--output", str(tmp_path / "out")]
    assert velm([*arguments, "--text", "a red circle", "--text", "a star"]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "scene.png", "scene.npz", "scene-2.png", "scene-2.npz", "explanations.json",
    }  # fmt: skip
    listed = json.loads((tmp_path / "out" / "explanations.json").read_text())
    assert listed[1] == {
        "text": "a star", "words": ["a", "star"], "picture": "scene-2.png", "arrays": "scene-2.npz",
    }  # fmt: skip
    with np.load(tmp_path / "out" / "scene.npz") as arrays:
        assert {name: array.shape for name, array in arrays.items()} == {
            "picture": (32, 32, 3),
            "attention": (3, 4, 4),
            "similarity": (4, 4),
        }
    assert f"{tmp_path / 'out' / 'scene-2.png'}\ta star\n" in capsys.readouterr().out


def test_without_a_text_its_own_caption(write_checkpoint, scene, tmp_path, capsys):
    checkpoint = str(write_checkpoint())
    assert velm(["explain", checkpoint, scene, "--output", str(tmp_path / "out"), "--max_length", "3"]) == 0
    explained = capsys.readouterr().out.strip().split("\t")[1]
    assert velm(["caption", checkpoint, scene, "--max_length", "3"]) == 0
    assert capsys.readouterr().out.strip().split("\t")[1] == explained


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.png"], "nowhere.png"),
        (["scene.png", "--num_beams", "0"], "num_beams 0 is too small"),
        (["scene.png", "--text", " "], "takes text that is not empty"),
    ],
)
def test_bad_input_is_told_without_a_traceback(
    write_checkpoint, scene, tmp_path, capsys, monkeypatch, arguments, words
):
    monkeypatch.chdir(tmp_path)
    assert velm(["explain", str(write_checkpoint()), *arguments, "--output", str(tmp_path / "out")]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_saliency_without_captum_names_the_extra(write_checkpoint, scene, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    arguments = ["explain", str(write_checkpoint()), scene, "--saliency", "--output", str(tmp_path / "out")]
    assert velm(arguments) == 2
    assert "pip install 'velm[explain]'" in capsys.readouterr().err
