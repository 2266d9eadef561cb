"""`velm export --data`: recall@1 and CIDEr-D of the checkpoint beside those of what was written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import velm
from velm import cli
from velm.errors import ConfigError, ExportError, MissingSplitError
from velm.evaluation.evaluate import evaluate
from velm.exports import Sample, formats
from velm.exports.change import METRICS, Change, Exercise, measure_change, model_metrics


def table(folder: Path, splits: str = "test", broken: int | None = None) -> dict[str, Any]:
    """The data config of five images, each with two captions."""
    rng = np.random.default_rng(0)
    lines = ["image_path,text,split"]
    for number in range(5):
        path = folder / f"{number}.png"
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(path)
        if number == broken:
            path.write_bytes(b"no image")
        lines += [f"{path.name},a red circle {number} {word},{splits}" for word in ("left", "right")]
    (folder / "captions.csv").write_text("\n".join(lines) + "\n")
    return {"dataset": {"name": "csv", "path": str(folder / "captions.csv")}, "max_bad": 0.5}


@pytest.mark.usefixtures("in_this_process")
def test_what_was_written_is_measured_as_velm_evaluate_does(
    write_checkpoint: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_checkpoint()
    made = velm.export(path, tmp_path / "out", data=Sample())
    pipeline = velm.load(path)
    expected = evaluate(pipeline, velm.datasets.build(pipeline.data["dataset"]).split("test"))
    assert [(change.before, change.after) for change in made.changes] == [(expected[key],) * 2 for key in METRICS]
    assert str(made.changes[0]) in (made.folder / "README.md").read_text(encoding="utf-8")
    options = ["--data", "val", "--samples", "3", "--data.dataset.val_size=4"]
    assert cli.main(["export", str(path), "--output", str(tmp_path / "more"), *options]) == 0
    assert "recall@1 image to text " in capsys.readouterr().out


@pytest.mark.parametrize("broken", [None, 2])
def test_a_split_without_test_and_an_image_that_cannot_be_read(
    write_checkpoint: Callable[..., Path], tmp_path: Path, broken: int | None
) -> None:
    pipeline = velm.load(write_checkpoint(data=table(tmp_path, "val", broken)))
    asked: list[dict[str, Any]] = []

    def ask(exercise: dict[str, Any]) -> dict[str, float]:
        asked.append(exercise)
        return model_metrics(pipeline, Exercise(**json.loads(json.dumps(exercise))))

    changes = measure_change(pipeline, "tiny.ckpt", Sample(), ask)
    assert [change.before == change.after for change in changes] == [True] * 3
    assert asked[0]["split"] == "val"
    assert asked[0]["rows"] == [row for row in range(5) if row != broken]
    measure_change(pipeline, "tiny.ckpt", Sample(size=3), ask)
    assert asked[1]["rows"] == [row for row in (0, 2, 4) if row != broken]
    with pytest.raises(MissingSplitError, match="test"):
        measure_change(pipeline, "tiny.ckpt", Sample(split="test"), ask)


def test_a_decoder_that_reads_texts_is_asked_first_turns(write_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    said = [("human", "a red circle"), ("gpt", "red"), ("human", "and a small square"), ("gpt", "blue")]
    turns = [{"from": name, "value": value} for name, value in said]
    table(tmp_path)
    rows = [{"image": f"{number}.png", "conversations": turns} for number in range(4)]
    (tmp_path / "turns.json").write_text(json.dumps(rows))
    data = {"dataset": {"name": "llava", "path": str(tmp_path / "turns.json"), "use": "conversations"}}
    pipeline = velm.load(write_checkpoint(data=data, target=True, memory=["image", "text"], losses={"captioning": {}}))
    exercises: list[Exercise] = []

    def ask(exercise: dict[str, Any]) -> dict[str, float]:
        exercises.append(Exercise(**exercise))
        return model_metrics(pipeline, exercises[-1])

    (change,) = measure_change(pipeline, "tiny.ckpt", Sample(split="train"), ask)
    assert change.name == "CIDEr-D"
    assert change.before == change.after
    assert {(record.texts, record.targets) for record in exercises[0].records()} == {(("a red circle",), ("red",))}


def test_worse_metrics_leave_nothing(
    write_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "in_fresh_process", lambda _reader, _folder, golden, _plugins: golden)
    monkeypatch.setattr(formats, "metrics_in_fresh_process", lambda *_: dict.fromkeys(METRICS, -0.5))
    place = tmp_path / "place"
    with pytest.raises(ExportError, match=r"velm is worse than .*recall@1 image to text 0..*is -0.02.*--max"):
        velm.export(write_checkpoint(), place / "out", data=Sample())
    assert list(place.iterdir()) == []
    assert velm.export(write_checkpoint(), place / "out", data=Sample(max_change=9.0)).changes


def test_a_rise_is_no_fall() -> None:
    assert Change("recall@1", 0.5, 0.9, 0.02).passed
    assert str(Change("recall@1", 0.966, 0.961, 0.02)) == "recall@1 0.966 -> 0.961 (-0.005)"
    assert not Change("recall@1", 0.5, 0.47, 0.02).passed
    assert not Change("recall@1", 0.5, float("nan"), 0.02).passed


def test_what_cannot_be_compared_is_refused(
    write_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"--samples 0 is too small; it is at least 1, or left out for all"):
        Sample(size=0)
    monkeypatch.setitem(formats.FORMATS, "towers", formats.FORMATS["velm"])
    with pytest.raises(ConfigError, match=r"--data compares metrics of a whole model: --format velm.*; not towers"):
        velm.export(write_checkpoint(), tmp_path / "out", format="towers", data=Sample())
    pipeline = velm.load(write_checkpoint(decoder=None, losses={}, text_encoder=None))
    with pytest.raises(ExportError, match=r"this model neither aligns nor writes"):
        measure_change(pipeline, "tiny.ckpt", Sample(), lambda _: {})
