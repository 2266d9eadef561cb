"""Lightning's finders of learning rate and batch size, with VELM's schedule and samplers."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from tiny_run import fit, tiny_config

pytestmark = pytest.mark.filterwarnings("ignore")


def finder(name: str, options: str) -> str:
    return f"--trainer.callbacks=[{{class_path: lightning.pytorch.callbacks.{name}, init_args: {{{options}}}}}]"


def test_the_rate_that_was_found_is_the_peak_of_the_schedule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--trainer.max_epochs=5", "--model.optimizer={warmup: 0.0, min_lr: 1.0, lr_scale: {decoder: 0.5}}"]
    found = finder("LearningRateFinder", "num_training_steps: 18, min_lr: 1e-4, max_lr: 1e-2")
    assert fit(tiny_config(tmp_path), found, *flags) == 0
    printed = capsys.readouterr().out
    assert "LearningRateFinder: model.optimizer.lr is " in printed
    rate = float(printed.partition("model.optimizer.lr is ")[2].split()[0])
    rows = list(csv.DictReader(Path("runs/tiny/metrics.csv").read_text().splitlines()))
    rates = {name: {float(row[name]) for row in rows if row[name]} for name in rows[0] if name.startswith("lr-")}
    assert list(rates["lr-AdamW/image_encoder"]) == pytest.approx([rate], rel=1e-2)
    assert list(rates["lr-AdamW/decoder"]) == pytest.approx([rate / 2], rel=1e-2)
    assert torch.load("runs/tiny/last.ckpt", weights_only=True)["global_step"] == 20, "the search trains nothing"


def test_a_search_that_is_too_short_says_so_and_the_rate_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert fit(tiny_config(tmp_path), finder("LearningRateFinder", "num_training_steps: 3")) == 0
    assert "found no rate in 3 steps" in capsys.readouterr().out


def test_the_batch_size_that_was_found_is_trained_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    found = finder("BatchSizeFinder", "init_val: 2, max_trials: 2, steps_per_trial: 1")
    assert fit(tiny_config(tmp_path), found) == 0
    assert "BatchSizeFinder: data.batch_size is 4 from now on." in capsys.readouterr().out
    assert torch.load("runs/tiny/last.ckpt", weights_only=True)["global_step"] == 8
