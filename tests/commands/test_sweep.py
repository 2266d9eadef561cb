"""`velm sweep` as typed: its options, its output, and a sweep of real runs that fails, is killed and continued."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_trials import FakeTrials, Outcome
from tiny_run import TINY

import velm.sweep.sweep
from velm import cli
from velm.commands.sweep import _fit_options

pytest.importorskip("optuna", reason="pip install 'velm[sweep]'")
pytestmark = pytest.mark.filterwarnings("ignore")

STUDY = "parameters: {optimizer.lr: {low: 1e-3, high: 1.0, log: true}, model.decoder.depth: {values: [1, 2]}}"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with tiny.yaml and study.yaml."""
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(yaml.safe_dump(TINY), encoding="utf-8")
    Path("lr.yaml").write_text(STUDY, encoding="utf-8")
    return tmp_path


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeTrials:
    """Trials without processes, whose metric is the learning rate."""

    def outcome(parameters: dict[str, Any]) -> Outcome:
        return [parameters["model.optimizer.lr"]], 0

    start = FakeTrials(outcome)
    monkeypatch.setattr(velm.sweep.sweep, "Sweep", partial(velm.sweep.sweep.Sweep, start=start, poll=0.0))
    return start


COMMAND = ["sweep", "--config", "tiny.yaml", "--study", "lr.yaml"]


def test_a_sweep_prints_its_table_and_leaves_best_and_report(
    folder: Path, fake: FakeTrials, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*COMMAND, "--trials", "3", "trainer.max_epochs=2", "--data.batch_size", "4"]) == 0
    values = [parameters["model.optimizer.lr"] for _, parameters in fake.started]
    assert len(values) == 3
    assert all(each["trainer.max_epochs"] == 2 and each["config"] == "tiny.yaml" for _, each in fake.started)
    sweep = Path("runs/sweep/lr")
    printed = capsys.readouterr()
    assert printed.out.splitlines()[1].split()[2] == f"{max(values):.4f}"
    assert "velm fit --config runs/sweep/lr/best.yaml" in printed.out
    assert printed.err.count("\ntrial ") + 1 >= 6, "a line at the start and at the end of each"
    assert {"best.yaml", "report.html", "study.journal", "trial_000"} <= {path.name for path in sweep.iterdir()}
    assert cli.main([*COMMAND, "--trials", "9", "trainer.max_epochs=3"]) == 2
    assert "fit.trainer.max_epochs 2 -> 3" in capsys.readouterr().err
    assert cli.main(["sweep", "--report", str(sweep), "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert [row["value"] for row in results["trials"]] == values
    assert results["best"]["value"] == max(values)
    assert cli.main(["sweep", "--output", str(sweep), "--report"]) == 0
    assert capsys.readouterr().out == printed.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sweep", "--config", "tiny.yaml"], "needs --study study.yaml, or --report FOLDER"),
        (["sweep", "--report"], "--report needs the folder of a sweep"),
        (["sweep", "--report", "nowhere"], "There is no sweep in nowhere"),
        ([*COMMAND, "--model.optimizer.lrr=3"], "unrecognized arguments: --model.optimizer.lrr=3"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_starts(
    arguments: list[str], message: str, folder: Path, fake: FakeTrials, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    assert message in capsys.readouterr().err
    assert not fake.started


def test_an_interrupted_sweep_prints_its_table(
    folder: Path, fake: FakeTrials, capsys: pytest.CaptureFixture[str]
) -> None:
    def outcome(parameters: dict[str, Any]) -> Outcome:
        if len(fake.started) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return [0.5], 0

    fake.outcome = outcome
    assert cli.main([*COMMAND, "--trials", "5"]) == 130
    printed = capsys.readouterr().out
    assert printed.count("complete") == 1
    assert printed.count("unfinished") == 1


def test_words_with_an_equals_sign_are_options_unless_they_are_values() -> None:
    given = ["--config", "a=b.yaml", "model.optimizer.lr=0.1", "--trainer.max_epochs=2", "data.batch_size=4"]
    wanted = ["--config", "a=b.yaml", "--model.optimizer.lr=0.1", "--trainer.max_epochs=2", "--data.batch_size=4"]
    assert _fit_options(given) == wanted


BREAKS = """
import os
import time
import lightning

class Break(lightning.Callback):
    def on_train_start(self, trainer, pl_module):
        if pl_module.optimizer_config.weight_decay == 0.5 and pl_module.optimizer_config.lr == 1e-4:
            os.kill(os.getpid(), 9)

    def on_train_batch_end(self, trainer, *_):
        if trainer.default_root_dir.endswith("trial_005") and trainer.global_step == 6 and not os.path.exists("seen"):
            open("seen", "w").close()
            sweep = os.getppid()
            os.kill(sweep, 9)
            while os.getppid() == sweep:
                time.sleep(0.01)
"""
EIGHT = """
sampler: grid
parameters:
  model.optimizer.weight_decay: {values: [0.01, 0.5]}
  model.optimizer.lr: {values: [1e-4, 1e-3, 5e-3, 2e-2]}
"""


def metric_of(run: Path) -> list[float]:
    rows = csv.DictReader((run / "metrics.csv").read_text(encoding="utf-8").splitlines())
    return [float(row["val/score"]) for row in rows if row.get("val/score")]


@pytest.mark.slow
def test_a_sweep_with_a_failed_trial_that_is_killed_ends_with_every_trial_once(folder: Path) -> None:
    """Eight runs; the fifth kills itself, the sixth kills the sweep and gets SIGTERM by that."""
    Path("breaks.py").write_text(BREAKS, encoding="utf-8")
    Path("eight.yaml").write_text(EIGHT, encoding="utf-8")
    command = [sys.executable, "-m", "velm", "sweep", "--config", "tiny.yaml", "--study", "eight.yaml", "--trials", "8"]
    command += ["trainer.max_epochs=2", "trainer.callbacks=[{class_path: breaks.Break}]"]
    first = subprocess.run(command, capture_output=True, text=True, timeout=1500, check=False)
    assert first.returncode == -signal.SIGKILL, first.stderr[-2000:]
    sweep = Path("runs/sweep/eight")
    await_end_of_run(sweep / "trial_005")
    assert (sweep / "trial_005" / "last.ckpt").is_file(), "the killed sweep's run has saved its checkpoint"
    second = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=1500, check=False)
    assert second.returncode == 0, second.stderr[-2000:]
    results = json.loads(second.stdout)
    rows = results["trials"]
    assert [row["number"] for row in rows] == list(range(8))
    assert [row["state"] for row in rows] == ["failed" if row["number"] == 4 else "complete" for row in rows]
    assert rows[4]["cause"].startswith("killed by SIGKILL (lack of memory?)")
    assert len({json.dumps(row["parameters"]) for row in rows}) == 8
    measured = {row["number"]: max(metric_of(sweep / f"trial_{row['number']:03d}")) for row in rows if row["value"]}
    assert {row["number"]: row["value"] for row in rows if row["value"]} == pytest.approx(measured)
    assert results["best"]["value"] == pytest.approx(max(measured.values()))
    log = (sweep / "trial_005" / "log.txt").read_text(encoding="utf-8")
    assert "Resumes runs/sweep/eight/trial_005/last.ckpt at step 6" in log
    assert all(second.stderr.count(f"trial {number}  weight_decay") == (number >= 5) for number in range(8))
    assert cli.main(["fit", "--config", str(sweep / "best.yaml"), "--trainer.max_epochs=1"]) == 0
    assert Path("runs/best/best.ckpt").is_file()


@pytest.mark.slow
def test_a_pruned_run_saves_its_checkpoint(folder: Path) -> None:
    text = "{sampler: grid, metric: val/loss, direction: minimize, pruner: {name: median, startup: 1}, parameters: "
    Path("two.yaml").write_text(f"{text}{{optimizer.lr: {{values: [5e-3, 1e-9]}}}}}}", encoding="utf-8")
    command = [sys.executable, "-m", "velm", "sweep", "--config", "tiny.yaml", "--study", "two.yaml", "--json"]
    done = subprocess.run([*command, "trainer.max_epochs=60"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = json.loads(done.stdout)["trials"]
    assert (first["state"], second["state"]) == ("complete", "pruned")
    assert 2 <= second["validations"] < first["validations"] == 60
    assert Path(second["folder"], "last.ckpt").is_file()
    assert (
        "Stopped by SIGTERM: the current step was finished and saved." in Path(second["folder"], "log.txt").read_text()
    )


def await_end_of_run(run: Path) -> None:
    """Wait until the process of a run, which gets SIGTERM when the sweep dies, has released its folder."""
    for _ in range(600):
        if not (run / "run.lock.json").exists():
            return
        time.sleep(0.1)
    raise AssertionError(f"the run in {run} goes on")
