"""One run at a time writes to a run folder; the lock of a killed run is free at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.utilities import rank_zero_only

from velm.errors import ConfigError
from velm.training.recovery import run_folder
from velm.training.recovery.run_folder import ClaimRunFolder, RunLock, resume_path

HOLD = """
import os, sys, time
from pathlib import Path
from velm.training.recovery.run_folder import RunLock
lock = RunLock(Path(sys.argv[1]))
lock.acquire()
if os.fork() == 0:  # a DataLoader worker, which outlives a killed run by a few seconds
    os.close(1)
    time.sleep(30)
    os._exit(0)
print("acquired", flush=True)
time.sleep(60)
"""


def trainer(main: bool = True) -> Any:
    return SimpleNamespace(is_global_zero=main, strategy=SimpleNamespace(broadcast=lambda value: value), loggers=[])


def begin(folder: Path, keep: bool = False, wait: bool = False, main: bool = True) -> ClaimRunFolder:
    """A run that is built and takes its first step."""
    claim = ClaimRunFolder(folder, keep=keep, wait=wait)
    claim.reserve()
    claim.on_fit_start(trainer(main), None)  # type: ignore[arg-type]
    return claim


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen]:
    """Another process that holds the lock, and its worker."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "acquired\n"
    yield process
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_a_second_run_is_refused_and_a_killed_one_frees_the_lock(tmp_path: Path, holder: subprocess.Popen) -> None:
    message = rf"is used by another run \(process {holder.pid} on \S+: -c {tmp_path}\).*its own folder: --trainer"
    with pytest.raises(ConfigError, match=message):
        RunLock(tmp_path).acquire()
    os.kill(holder.pid, signal.SIGKILL)
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)
    lock = RunLock(tmp_path)
    lock.acquire()
    assert json.loads((tmp_path / "run.lock.json").read_text(encoding="utf-8"))["pid"] == os.getpid()
    lock.release()
    lock.release()
    assert list(tmp_path.iterdir()) == []


def test_a_restarted_run_waits_for_another_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run_folder, "WAIT", 0.2)
    first = RunLock(tmp_path)
    first.acquire()
    row = {"pid": 7, "host": "elsewhere", "command": "velm fit"}
    (tmp_path / "run.lock.json").write_text(json.dumps(row), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"process 7 on elsewhere: velm fit"):
        RunLock(tmp_path, wait=True).acquire()
    assert "for elsewhere to release" in capsys.readouterr().out
    first.release()
    claim = begin(tmp_path, keep=True, wait=True)
    assert claim.locked
    claim.release()


def test_a_holder_without_a_name_is_refused_too(tmp_path: Path) -> None:
    first = RunLock(tmp_path)
    first.acquire()
    (tmp_path / "run.lock.json").write_text('{"host": "els', encoding="utf-8")
    with pytest.raises(ConfigError, match="process unknown"):
        RunLock(tmp_path).acquire()
    first.release()


def test_the_ranks_of_one_run_share_its_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    claim = begin(tmp_path)
    assert claim.locked
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    assert not begin(tmp_path, main=False).locked
    claim.release()


def test_a_second_run_is_refused_when_it_begins_on_all_ranks(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first, second = (ClaimRunFolder(folder, keep=False, wait=False) for _ in range(2))
    for claim in (first, second):
        claim.reserve()
    assert not folder.exists()
    first.on_fit_start(trainer(), None)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="is used by another run"):
        second.on_fit_start(trainer(), None)  # type: ignore[arg-type]
    first.release()
    assert not folder.exists(), "nothing was written"


def test_an_earlier_run_is_renamed_unless_it_continues(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    for keep in (True, False, False):
        folder.mkdir(exist_ok=True)
        (folder / "metrics.csv").touch()
        claim = begin(folder, keep=keep)
        assert (folder / "metrics.csv").exists() == keep
        claim.release()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.1", "run.2"]
    assert f"is now in {folder}.2. To continue it: --ckpt_path {folder}.2/last.ckpt" in capsys.readouterr().out


def test_the_last_checkpoint_of_the_run_is_preferred(tmp_path: Path) -> None:
    assert resume_path(str(tmp_path), "other.ckpt") == "other.ckpt"
    assert resume_path(str(tmp_path), None) is None
    (tmp_path / "last.ckpt").touch()
    assert resume_path(str(tmp_path), "other.ckpt") == str(tmp_path / "last.ckpt")
