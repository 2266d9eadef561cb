"""Resuming under another config: its options win and are listed; another model or vocabulary is refused."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
import yaml

from velm import cli
from velm.training.recovery.changes import changed_options

pytestmark = pytest.mark.filterwarnings("ignore")

CONFIG: dict[str, Any] = {
    "model": {
        "image_encoder": {"name": "cnn", "dim": 8},
        "text_encoder": {"name": "rnn", "dim": 8},
        "losses": {"contrastive": {}},
        "optimizer": {"lr": 0.01, "warmup": 0.0, "min_lr": 1.0},
    },
    "data": {
        "dataset": {"name": "shapes", "train_size": 8, "val_size": 2, "test_size": 2},
        "image_size": 16,
        "batch_size": 4,
    },
    "trainer": {
        "max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 1,
        "limit_val_batches": 0, "enable_model_summary": False,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with run.yaml, and a run of one epoch in `one`."""
    folder = tmp_path_factory.mktemp("changes")
    (folder / "run.yaml").write_text(yaml.safe_dump(CONFIG), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert fit("one") == 0
    return folder


@pytest.fixture
def _inside(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished)


def fit(run: str, *options: str) -> int:
    return cli.main(["fit", "--config", "run.yaml", f"--trainer.default_root_dir={run}", *options])


RESUMED = "--ckpt_path=one/last.ckpt"


def rates(run: str) -> list[float]:
    rows = list(csv.DictReader(Path(run, "metrics.csv").read_text(encoding="utf-8").splitlines()))
    return [float(row[name]) for row in rows for name in row if name.startswith("lr-") and row[name]]


@pytest.mark.usefixtures("_inside")
def test_options_of_the_config_win_and_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model.optimizer.lr=1e-4", "--model.optimizer.weight_decay=0.5", "--data.batch_size=2"]
    assert fit("rate", RESUMED, "--trainer.max_epochs=2", *options) == 0
    said = capsys.readouterr().out
    assert "Resumes one/last.ckpt at step 2, epoch 2: weights, optimizer state and position are" in said
    for change in (
        "model.optimizer.lr 0.01 -> 0.0001",
        "model.optimizer.weight_decay 0.01 -> 0.5",
        "data.batch_size 4 -> 2",
        "trainer.max_epochs 1 -> 2",
    ):
        assert change in said
    assert set(rates("rate")) == {1e-4}
    [state] = torch.load("rate/last.ckpt", weights_only=True)["optimizer_states"]
    assert {group["weight_decay"] for group in state["param_groups"]} == {0.0, 0.5}


@pytest.mark.usefixtures("_inside")
def test_a_checkpoint_without_options_resumes_too(capsys: pytest.CaptureFixture[str]) -> None:
    """Those that VELM wrote before it stored them."""
    content = torch.load("one/last.ckpt", weights_only=True)
    assert content["callbacks"].pop("ResumeOptions")
    torch.save(content, "old.ckpt")
    assert fit("old", "--ckpt_path=old.ckpt", "--trainer.max_epochs=2", "--model.optimizer.lr=1e-4") == 0
    assert "which differ in learning rate of image_encoder 0.01 -> 0.0001." in capsys.readouterr().out
    assert set(rates("old")) == {1e-4}


@pytest.mark.usefixtures("_inside")
@pytest.mark.parametrize("epochs", [1, 0])
def test_a_finished_run_says_that_nothing_was_trained(capsys: pytest.CaptureFixture[str], epochs: int) -> None:
    assert fit(f"none{epochs}", RESUMED, f"--trainer.max_epochs={epochs}") == 0
    said = capsys.readouterr().out
    assert f"Nothing was trained: one/last.ckpt is at step 2 of epoch 1, and trainer.max_epochs is {epochs}." in said
    assert "--model.pretrained=one/last.ckpt, without --ckpt_path" in said
    assert "velm evaluate" not in said


@pytest.mark.usefixtures("_inside")
@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (
            ["--data.dataset.train_size=4"],
            r"has a vocabulary of \d+ tokens, and this data makes one of \d+",
        ),
        (["--data.tokenizer=byte"], "has the tokenizer 'word', and this config 'byte', which gives other ids"),
        (["--model.losses={sigmoid: {}}"], "losses.sigmoid.log_scale is not in it"),
        (["--model.embed_dim=4"], r"image_projection.weight is \(256, 8\) in it and \(4, 8\) here"),
        (
            ["--model.freeze=[image_encoder]"],
            r"optimizer state of \d+ tensors \(image_encoder \d+, .* model.freeze",
        ),
    ],
    ids=["vocabulary", "tokenizer", "loss", "width", "freeze"],
)
def test_another_model_is_refused_and_told_how_to_start_from_it(
    options: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit("refused", RESUMED, "--trainer.max_epochs=2", *options) == 2
    said = capsys.readouterr().err
    assert pytest.RaisesExc(ValueError, match=problem).matches(ValueError(said)), said
    assert "--model.pretrained=one/last.ckpt, without --ckpt_path and --resume" in said
    assert not Path("refused").exists()


@pytest.mark.usefixtures("_inside")
def test_a_new_run_starts_from_weights(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model.losses={sigmoid: {}}", "--data.dataset.train_size=4", "--data.image_size=24", "--model.ema=0.9"]
    start = ["--model.pretrained=one/last.ckpt", "--trainer.max_epochs=1"]
    assert fit("tuned", *start, *options, "--model.optimizer.lr=1e-12") == 0
    said = capsys.readouterr().out
    assert "Starts from the weights of one/last.ckpt: " in said
    assert "tokens keep their vectors" in said
    assert "New, not in the source: losses.sigmoid." in said
    one, tuned = (torch.load(f"{run}/last.ckpt", weights_only=True) for run in ("one", "tuned"))
    assert tuned["global_step"] == 1
    name = "model.image_projection.weight"
    torch.testing.assert_close(tuned["state_dict"][name], one["state_dict"][name])
    assert fit("tuned", "--resume", *start[:1], "--trainer.max_epochs=2", *options) == 0
    assert "Starts from the weights" not in capsys.readouterr().out


class Note(lightning.Callback):
    """Writes down which images a step sees."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        with open("seen.txt", "a", encoding="utf-8") as file:
            file.write(f"{sorted(batch.image_ids.tolist())}\n")


@pytest.mark.usefixtures("_inside")
def test_overfitting_sees_the_same_batches_in_every_epoch_also_after_a_resume() -> None:
    note = f"--trainer.callbacks=[{{class_path: {__name__}.Note}}]"
    options = [note, "--data.batch_size=2", "--trainer.overfit_batches=2"]
    assert fit("overfit", *options, "--trainer.max_epochs=2") == 0
    assert fit("overfit", *options, "--trainer.max_epochs=3", "--ckpt_path=overfit/last.ckpt") == 0
    seen = Path("seen.txt").read_text(encoding="utf-8").splitlines()
    assert seen == 3 * seen[:2]
    assert seen[0] != seen[1]


def test_help_lists_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["fit", "--help"])
    assert "--model.pretrained" in capsys.readouterr().out


def test_options_are_compared_by_name_and_value() -> None:
    before = {"a": {"b": 1, "c": [1, 2], "gone": 3}, "data": {"num_workers": 0}, "e": {}}
    after = {"a": {"b": 2, "c": [1, 2], "new": {"x": 0.0}}, "data": {"num_workers": 4}, "e": None}
    assert changed_options(before, after) == ["a.b 1 -> 2", "a.new.x None -> 0.0", "a.gone 3 -> None"]
