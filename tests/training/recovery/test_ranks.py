"""What ranks know of each other: who failed, who was killed, who does not answer."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch.distributed import TCPStore

from velm.errors import RunFailedError
from velm.training.recovery import ranks
from velm.training.recovery.ranks import Ranks, meet_anew

LOST = RuntimeError("[gloo/transport/tcp/pair.cc:545] Read error: Connection reset by peer")


class Strategy:
    """Of rank `rank` of two, without a process group."""

    def broadcast(self, value: Any) -> Any:
        return "the same"

    def barrier(self, name: str) -> None:
        pass


def rank(folder: Path, number: int) -> tuple[Ranks, Any]:
    trainer: Any = SimpleNamespace(world_size=2, global_rank=number, strategy=Strategy())
    mine = Ranks(folder)
    mine.setup(trainer, None, "fit")  # type: ignore[arg-type]
    return mine, trainer


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "SEARCH", 0.3)


def told(mine: Ranks, trainer: Any) -> str:
    lost = RuntimeError(str(LOST))
    mine.on_exception(trainer, None, lost)
    assert isinstance(lost.told, RunFailedError)  # type: ignore[attr-defined]
    return str(lost.told)  # type: ignore[attr-defined]


def pretend(folder: Path, number: int, **changes: Any) -> None:
    row = {"attempt": "the same", "host": socket.gethostname(), "pid": os.getpid(), "error": "", "last": False}
    (folder / "ranks").mkdir(exist_ok=True)
    (folder / "ranks" / f"rank_{number}.json").write_text(json.dumps({**row, **changes}), encoding="utf-8")


def test_the_one_that_failed_is_named_with_its_error(tmp_path: Path) -> None:
    (mine, trainer), (other, its) = rank(tmp_path, 0), rank(tmp_path, 1)
    other.on_exception(its, None, ValueError("no such thing\nas a second line"))
    message = told(mine, trainer)
    assert (
        f"Rank 1 ({socket.gethostname()}, process {os.getpid()}) failed: ValueError: no such thing. Rank 0" in message
    )
    assert "the same command with --resume" in message


def test_an_echo_is_no_culprit(tmp_path: Path) -> None:
    (mine, trainer), (other, its) = rank(tmp_path, 0), rank(tmp_path, 1)
    other.on_exception(its, None, RuntimeError(str(LOST)))
    assert told(mine, trainer).startswith("No rank has written an error; without an answer: none.")


def test_the_one_that_was_killed_is_missed(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    mine, trainer = rank(tmp_path, 0)
    pretend(tmp_path, 1, pid=gone.pid)
    assert f"process {gone.pid}) is gone without a word: it was killed" in told(mine, trainer)


def test_one_that_has_ended_by_itself_is_not_missed(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    mine, trainer = rank(tmp_path, 0)
    pretend(tmp_path, 1, pid=gone.pid, last=True)
    assert "gone" not in told(mine, trainer)


def test_the_one_that_is_silent_is_named(tmp_path: Path) -> None:
    mine, trainer = rank(tmp_path, 0)
    pretend(tmp_path, 1, host="elsewhere", pid=3)
    assert "without an answer: rank 1 (elsewhere, process 3)." in told(mine, trainer)


def test_files_of_an_earlier_attempt_say_nothing(tmp_path: Path) -> None:
    mine, trainer = rank(tmp_path, 0)
    pretend(tmp_path, 1, attempt="an earlier one", error="ValueError: old")
    assert "ValueError" not in told(mine, trainer)


@pytest.mark.slow
def test_a_process_that_is_kept_waiting_is_ended(tmp_path: Path) -> None:
    code = f"""
import time
from pathlib import Path
from types import SimpleNamespace
from velm.training.recovery import ranks
ranks.GRACE = ranks.LOOK = 0.1
strategy = SimpleNamespace(broadcast=lambda value: "the same", barrier=lambda name: None)
trainer = SimpleNamespace(world_size=2, global_rank=0, strategy=strategy)
ranks.Ranks(Path({str(tmp_path)!r})).setup(trainer, None, "fit")
time.sleep(60)
"""
    pretend(tmp_path, 1, error="OSError: the cable is out")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "failed: OSError: the cable is out. Rank 0 ends within" in done.stderr


def test_processes_that_are_started_again_meet_at_another_port(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = TCPStore("127.0.0.1", 0, is_master=True)
    here = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(agent.port), "TORCHELASTIC_RESTART_COUNT": "1"}
    ports = []
    for number in ("0", "1"):
        for name, value in {**here, "TORCHELASTIC_USE_AGENT_STORE": "True", "RANK": number}.items():
            monkeypatch.setenv(name, value)
        meet_anew()
        ports.append(os.environ["MASTER_PORT"])
        assert os.environ["TORCHELASTIC_USE_AGENT_STORE"] == "False"
    assert ports[0] == ports[1] != str(agent.port)
