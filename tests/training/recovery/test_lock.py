"""Two runs never write to one folder; a run that is no more never keeps a folder."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from velm.errors import ConfigError
from velm.training.recovery import lock
from velm.training.recovery.lock import FILE, RunLock

HOLD = """
import sys, time
from pathlib import Path
from velm.training.recovery.lock import RunLock
RunLock(Path(sys.argv[1])).take()
print("taken", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen]:
    """Another process that has the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "taken\n"
    yield process
    process.kill()
    process.wait()


def of_another_machine(folder: Path, age: float, job: str | None = None) -> None:
    (folder / FILE).write_text(json.dumps({"host": "elsewhere", "pid": 7, "job": job}), encoding="utf-8")
    then = time.time() - age
    os.utime(folder / FILE, (then, then))


def test_a_living_run_is_named_and_a_killed_one_gives_way(tmp_path: Path, holder: subprocess.Popen) -> None:
    with pytest.raises(ConfigError, match=rf"is used by another run \(process {holder.pid} on .*a folder of its own"):
        RunLock(tmp_path).take()
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / FILE).is_file()
    mine = RunLock(tmp_path)
    mine.take()
    assert json.loads((tmp_path / FILE).read_text(encoding="utf-8"))["pid"] == os.getpid()
    mine.release()
    mine.release()
    assert not (tmp_path / FILE).exists()


def test_another_machine_is_refused_while_it_gives_signs_of_life(tmp_path: Path) -> None:
    of_another_machine(tmp_path, age=30)
    message = r"process 7 on elsewhere.*a sign of life 30 s ago; if that machine is gone, wait 90 s more or delete"
    with pytest.raises(ConfigError, match=message):
        RunLock(tmp_path).take()
    of_another_machine(tmp_path, age=lock.SILENCE + 1)
    mine = RunLock(tmp_path)
    mine.take()
    mine.release()


def test_a_run_that_the_cluster_starts_again_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lock, "SILENCE", 1.0)
    of_another_machine(tmp_path, age=0.5)
    mine = RunLock(tmp_path, wait=True)
    mine.take()
    mine.release()
    assert re.search(r"is of process 7 on elsewhere: waiting \d s", capsys.readouterr().out)


def test_the_same_slurm_job_takes_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    of_another_machine(tmp_path, age=0, job="41")
    with pytest.raises(ConfigError):
        RunLock(tmp_path).take()
    of_another_machine(tmp_path, age=0, job="42")
    mine = RunLock(tmp_path)
    mine.take()
    mine.release()


def test_it_gives_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT", 0.05)
    mine = RunLock(tmp_path)
    mine.take()
    os.utime(tmp_path / FILE, (0, 0))
    until = time.monotonic() + 10
    while os.stat(tmp_path / FILE).st_mtime == 0 and time.monotonic() < until:
        time.sleep(0.02)
    assert os.stat(tmp_path / FILE).st_mtime > 0
    mine.release()


def test_half_a_line_is_nobodys(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('{"host": "els', encoding="utf-8")
    mine = RunLock(tmp_path)
    mine.take()
    mine.release()
