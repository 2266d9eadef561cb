"""A trial's environment, what it has measured, and why it ended."""

from __future__ import annotations

from pathlib import Path

import pytest
from filelock import FileLock

from velm.errors import ConfigError
from velm.sweep import trials
from velm.sweep.trials import describe_end, environment, last_lines, start_fit, validations


@pytest.mark.parametrize(
    ("jobs", "given", "threads"), [(1, None, None), (1, "3", "3"), (2, None, "4"), (2, "1", "1"), (16, None, "1")]
)
def test_jobs_share_the_cores(
    jobs: int, given: str | None, threads: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert environment(0, jobs, cores=8, gpus=()).get("OMP_NUM_THREADS") == threads


@pytest.mark.parametrize(
    ("jobs", "gpus", "shares"),
    [(2, "0123", ["0,2", "1,3"]), (3, "01", ["0", "1", "0"]), (2, "5", ["5", "5"]), (2, "", [None, None])],
)
def test_jobs_share_the_gpus(jobs: int, gpus: str, shares: list[str | None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    given = [environment(slot, jobs, cores=8, gpus=list(gpus)).get("CUDA_VISIBLE_DEVICES") for slot in range(jobs)]
    assert given == shares


def test_one_job_has_every_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert "CUDA_VISIBLE_DEVICES" not in environment(0, 1, cores=8, gpus=["0", "1"])


def test_the_end_of_a_trial_is_its_code_and_its_last_line(tmp_path: Path) -> None:
    assert describe_end(2, tmp_path) == "exit code 2"
    (tmp_path / "log.txt").write_text("a\nvelm fit: no such file\n\n", encoding="utf-8")
    assert describe_end(2, tmp_path) == "exit code 2: velm fit: no such file"
    assert describe_end(-9, tmp_path) == "killed by SIGKILL (lack of memory?): velm fit: no such file"
    assert describe_end(-11, tmp_path).startswith("killed by SIGSEGV: ")
    assert last_lines(tmp_path, 5) == ["a", "velm fit: no such file"]


def test_validations_are_the_finite_values_of_a_column(tmp_path: Path) -> None:
    assert validations(tmp_path, "val/score") == []
    rows = ["step,train/loss,val/score", "0,1.5,", "1,,0.25", "2,1.0,", "3,,nan", "5,,0.5"]
    (tmp_path / "metrics.csv").write_text("\n".join(rows), encoding="utf-8")
    assert validations(tmp_path, "val/score") == [0.25, 0.5]
    assert validations(tmp_path, "val/other") == []


def test_a_run_that_goes_on_without_its_sweep_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "WAIT", 0.05)
    with (
        FileLock(tmp_path / "run.lock"),
        pytest.raises(ConfigError, match=r"is still used by a run of an earlier sweep .*run\.lock\.json names"),
    ):
        start_fit([], tmp_path, {})
