"""--resume: go on where there is something to go on from, begin where not; checkpoints at a URL; one run a folder."""

from __future__ import annotations

import csv
import os
import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pytest
import torch
import yaml
from injected import CONFIG
from lightning.fabric.plugins.environments import LightningEnvironment, SLURMEnvironment

from velm import cli
from velm.errors import ConfigError
from velm.training.recovery.resume import Resume, slurm_environments

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    dataset = {"name": "shapes", "train_size": 16, "val_size": 4, "test_size": 4}
    short = {
        **CONFIG,
        "data": {**CONFIG["data"], "dataset": dataset},
        "trainer": {**CONFIG["trainer"], "max_epochs": 1, "limit_val_batches": 0},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(short), encoding="utf-8")
    return tmp_path


def fit(*options: str) -> int:
    return cli.main(["fit", "--config", "run.yaml", *options])


def steps() -> list[int]:
    rows = csv.DictReader(Path("runs/run/metrics.csv").read_text(encoding="utf-8").splitlines())
    return [int(row["step"]) for row in rows if row.get("train/loss")]


def test_it_begins_then_goes_on_by_the_same_command() -> None:
    assert fit("--resume") == 0
    assert fit("--resume", "--trainer.max_epochs=2") == 0
    assert steps() == list(range(8))
    assert not Path("runs/run.1").exists()
    assert yaml.safe_load(Path("runs/run/config.yaml").read_text(encoding="utf-8"))["resume"] is False
    assert not list(Path("runs/run").glob("run.lock*"))


def test_a_restart_by_torchrun_goes_on_without_being_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fit() == 0
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert fit("--trainer.max_epochs=2") == 0
    assert steps() == list(range(8))


def test_figures_of_a_run_that_never_saved_come_again() -> None:
    assert fit("--resume") == 0
    Path("runs/run/last.ckpt").unlink()
    assert fit("--resume") == 0
    assert steps() == list(range(4))
    assert not Path("runs/run.1").exists()


def test_checkpoints_at_a_url() -> None:
    url = f"memory://{uuid.uuid4().hex}"
    place = f"--checkpoint_dir={url}"
    assert fit(place, "--save_last_k=2", "--trainer.limit_val_batches=1") == 0
    names = {file.rpartition("/")[2] for file in fsspec.filesystem("memory").ls(url, detail=False)}
    assert names == {"last.ckpt", "best.ckpt", "step_2.ckpt", "step_4.ckpt"}
    assert not list(Path("runs/run").glob("*.ckpt"))
    assert fit(place, "--resume", "--trainer.max_epochs=2") == 0
    assert steps() == list(range(8))
    with fsspec.open(f"{url}/last.ckpt", "rb") as file:
        assert torch.load(file, weights_only=True)["global_step"] == 8
    assert cli.main(["validate", "--config", "run.yaml", place]) == 0


def test_a_run_needs_a_folder_of_a_disk(capsys: pytest.CaptureFixture[str]) -> None:
    assert fit("--trainer.default_root_dir=memory://there") == 2
    assert "--checkpoint_dir=memory://there for the checkpoints" in capsys.readouterr().err


def test_ranks_that_see_different_checkpoints_are_told() -> None:
    strategy = SimpleNamespace(broadcast=lambda value: "runs/run/last.ckpt")
    trainer: Any = SimpleNamespace(ckpt_path=None, strategy=strategy, global_rank=3)
    with pytest.raises(
        ConfigError, match=r"Rank 3 would resume from nothing, rank 0 from .* do not share the run folder"
    ):
        Resume("runs/run").on_fit_start(trainer, None)  # type: ignore[arg-type]


def test_slurm_is_not_asked_to_requeue_by_lightning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SLURMEnvironment, "detect", staticmethod(lambda: True))
    assert [environment.auto_requeue for environment in slurm_environments()] == [False]
    monkeypatch.setattr(SLURMEnvironment, "detect", staticmethod(lambda: False))
    assert slurm_environments() == []


@pytest.mark.parametrize(
    ("environment", "starts"),
    [
        ({"SLURM_JOB_NAME": "jupyter", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, LightningEnvironment),
        ({"SLURM_JOB_NAME": "train", "SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "4"}, LightningEnvironment),
        ({"SLURM_JOB_NAME": "x", "SLURM_NTASKS": "4", "SLURM_STEP_ID": "0", "SLURM_PTY_PORT": "1"},
         LightningEnvironment),
        ({"SLURM_JOB_NAME": "x", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_STEP_ID": "0"},
         SLURMEnvironment),
        ({"SLURM_JOB_NAME": "bash", "SLURM_NTASKS": "4"}, None),
    ],
)  # fmt: skip
def test_only_a_step_of_srun_has_processes_that_slurm_started(
    environment: dict[str, str], starts: type | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert [type(each) for each in slurm_environments()] == ([] if starts is None else [starts])
    assert slurm_environments([LightningEnvironment()]) == [], "the user's own plugin decides"
