"""best.ckpt and last.ckpt beside the user's own ModelCheckpoint, and the names that --ckpt_path takes for them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny_run import fit, tiny_config

from velm import cli
from velm.errors import ConfigError
from velm.training.recovery.run_checkpoints import RunCheckpoint, named_checkpoint, run_checkpoints

pytestmark = pytest.mark.filterwarnings("ignore")
OWN = (
    "--trainer.callbacks=[{class_path: lightning.pytorch.callbacks.ModelCheckpoint, "
    "init_args: {monitor: val/score, mode: max, save_top_k: 3, dirpath: own}}]"
)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tiny_config(tmp_path)


def test_the_users_checkpoints_and_velms_of_one_run(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own_logger = "--trainer.logger={class_path: lightning.pytorch.loggers.CSVLogger, init_args: {save_dir: logs}}"
    assert fit(config, OWN, own_logger) == 0
    printed = capsys.readouterr().out
    assert "velm evaluate runs/tiny/best.ckpt" in printed
    written = {path.name for path in Path("runs/tiny").iterdir()} - {"alarms.txt"}
    assert {"config.yaml", "panel.txt", "best.ckpt", "last.ckpt", "metrics.csv"} <= written
    assert list(Path("logs").rglob("metrics.csv"))
    assert len(list(Path("own").glob("*.ckpt"))) == 1
    for command, name in (("validate", "best"), ("test", "last")):
        assert cli.main([command, "--config", str(config), f"--ckpt_path={name}"]) == 0
    assert fit(config, OWN, "--ckpt_path=last") == 0
    assert "Nothing was trained: runs/tiny/last.ckpt is at step 4 of epoch 1" in capsys.readouterr().out
    assert fit(config, OWN, "--ckpt_path=last", "--trainer.max_epochs=2") == 0
    assert torch.load("runs/tiny/last.ckpt", weights_only=True)["global_step"] == 8
    assert len(list(Path("own").glob("*.ckpt"))) == 2, "the user's callback goes on with its own state"


def test_a_run_without_loggers_and_checkpoints_names_no_file(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(config, "--trainer.logger=false", "--trainer.enable_checkpointing=false") == 0
    printed = capsys.readouterr().out
    assert "The run is in runs/tiny/: config.yaml, ..." in printed
    assert ".ckpt" not in printed


def test_checkpoints_in_another_folder_are_named_there(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(config, "--checkpoint_dir=elsewhere") == 0
    assert "velm evaluate elsewhere/best.ckpt" in capsys.readouterr().out


def test_a_state_of_an_earlier_velm_is_taken_over() -> None:
    best = run_checkpoints("runs/x", monitor="val/score", every_n_steps=10)[-1]
    own = ModelCheckpoint(monitor="val/score", mode="max")
    assert isinstance(best, RunCheckpoint)
    assert best.state_key != own.state_key
    checkpoint = {"callbacks": {own.state_key: {"best_model_score": 1.0}}}
    best.on_load_checkpoint(None, None, checkpoint)  # type: ignore[arg-type]
    assert checkpoint["callbacks"] == {best.state_key: {"best_model_score": 1.0}}


def test_a_named_checkpoint_that_is_not_there_says_which_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ConfigError, match=r"holds neither best.ckpt nor last.ckpt.*--trainer.default_root_dir"):
        named_checkpoint("best", "run")
    Path("run").mkdir()
    Path("run/last.ckpt").touch()
    with pytest.raises(ConfigError, match=r"--ckpt_path=best is run/best.ckpt .* There is: --ckpt_path=run/last.ckpt"):
        named_checkpoint("best", "run")
    with pytest.raises(ConfigError, match=r"is a folder.* There is: --ckpt_path=run/last.ckpt"):
        named_checkpoint("run", "elsewhere")
    assert named_checkpoint("~/run/last.ckpt", "run") == str(tmp_path / "run/last.ckpt")
    assert named_checkpoint("s3://a/best", "run") == "s3://a/best"
    assert named_checkpoint(None, "run") is None


def test_a_file_that_is_no_checkpoint_is_told(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(config, f"--ckpt_path={config}") == 2
    assert "no checkpoint that `velm fit` wrote" in capsys.readouterr().err
