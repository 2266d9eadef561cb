"""A rank names the other rank that failed, was killed or does not answer."""

from __future__ import annotations

import json
import os
import signal
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
from velm.training.recovery.ranks import RankWatch, new_rendezvous_port, record_errors
from velm.training.recovery.resume import explain_failure

LOST = RuntimeError("[gloo/transport/tcp/pair.cc:545] Read error: Connection reset by peer")


class Strategy:
    """A strategy without a process group."""

    def broadcast(self, value: Any) -> Any:
        return "the same"

    def barrier(self, name: str) -> None:
        pass


def rank(folder: Path, number: int) -> tuple[RankWatch, Any]:
    trainer: Any = SimpleNamespace(world_size=2, global_rank=number, strategy=Strategy())
    watch = RankWatch(folder)
    watch.setup(trainer, None, "fit")  # type: ignore[arg-type]
    return watch, trainer


@pytest.fixture(autouse=True)
def short_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "SEARCH", 0.3)


def cause_of(watch: RankWatch, trainer: Any) -> str:
    """What a rank says after its connection is lost."""
    watch.on_exception(trainer, None, RuntimeError(str(LOST)))
    failure = explain_failure(LOST, SimpleNamespace(callbacks=[watch]))  # type: ignore[arg-type]
    assert type(failure) is RunFailedError
    return str(failure)


def write_status(folder: Path, number: int, **changes: Any) -> None:
    row = {"attempt": "the same", "host": socket.gethostname(), "pid": os.getpid(), "error": ""}
    (folder / "ranks").mkdir(exist_ok=True)
    (folder / "ranks" / f"rank_{number}.json").write_text(json.dumps({**row, **changes}), encoding="utf-8")


def test_the_rank_that_failed_is_named_with_its_error(tmp_path: Path) -> None:
    (watch, trainer), (other, other_trainer) = rank(tmp_path, 0), rank(tmp_path, 1)
    other.on_exception(other_trainer, None, ValueError("no such thing\nas a second line"))
    here = f"{socket.gethostname()}, process {os.getpid()}"
    message = cause_of(watch, trainer)
    assert f"Rank 1 ({here}) failed: ValueError: no such thing. Rank 0 stops: RuntimeError: [gloo" in message
    assert "the same command with --resume" in message


def test_a_lost_connection_is_not_a_cause(tmp_path: Path) -> None:
    (watch, trainer), (other, other_trainer) = rank(tmp_path, 0), rank(tmp_path, 1)
    other.on_exception(other_trainer, None, RuntimeError(str(LOST)))
    assert cause_of(watch, trainer).startswith("No rank reports an error; no answer from: unknown.")


def test_without_another_rank_an_error_speaks_for_itself() -> None:
    assert explain_failure(ValueError("no such thing"), None) is None


def test_a_killed_rank_is_named(tmp_path: Path) -> None:
    zombie = subprocess.Popen([sys.executable, "-c", ""])  # a child of this process, as under Lightning's launcher
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
    watch, trainer = rank(tmp_path, 0)
    write_status(tmp_path, 1, pid=zombie.pid, crash=str(tmp_path / "nothing.crash"))
    assert f"process {zombie.pid}) disappeared without an error: it was killed" in cause_of(watch, trainer)
    zombie.wait()
    assert f"process {zombie.pid}) disappeared without an error: it was killed" in cause_of(watch, trainer)


def test_a_crash_is_not_told_as_a_kill(tmp_path: Path) -> None:
    """gloo aborts the process of a rank whose tensors have other shapes than it was told."""
    code = f"""
import os
from pathlib import Path
from types import SimpleNamespace
from velm.training.recovery.ranks import RankWatch
strategy = SimpleNamespace(broadcast=lambda value: "the same", barrier=lambda name: None)
RankWatch(Path({str(tmp_path)!r})).setup(SimpleNamespace(world_size=2, global_rank=1, strategy=strategy), None, "fit")
os.abort()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == -signal.SIGABRT
    watch, trainer = rank(tmp_path, 0)
    message = cause_of(watch, trainer)
    assert "crashed outside of Python (Aborted); the cause is in its output" in message
    assert "memory" not in message
    write_status(tmp_path, 1, pid=done.returncode + 10**8, crash="")
    assert "it crashed, and its output says why, or it was killed" in cause_of(watch, trainer)


def test_a_rank_that_has_ended_is_not_missed(tmp_path: Path) -> None:
    (watch, trainer), (other, other_trainer) = rank(tmp_path, 0), rank(tmp_path, 1)
    other.teardown(other_trainer, None, "fit")  # type: ignore[arg-type]
    assert "no answer from: unknown" in cause_of(watch, trainer)


def test_a_rank_that_does_not_answer_is_named(tmp_path: Path) -> None:
    watch, trainer = rank(tmp_path, 0)
    write_status(tmp_path, 1, host="elsewhere", pid=3)
    assert "no answer from: Rank 1 (elsewhere, process 3)." in cause_of(watch, trainer)


def test_files_of_an_earlier_attempt_are_ignored(tmp_path: Path) -> None:
    watch, trainer = rank(tmp_path, 0)
    write_status(tmp_path, 1, attempt="an earlier one", error="ValueError: old")
    assert "ValueError" not in cause_of(watch, trainer)


@pytest.mark.slow
def test_a_rank_that_stays_blocked_is_ended(tmp_path: Path) -> None:
    code = f"""
import time
from pathlib import Path
from types import SimpleNamespace
from velm.training.recovery import ranks
ranks.GRACE = ranks.POLL = 0.1
strategy = SimpleNamespace(broadcast=lambda value: "the same", barrier=lambda name: None)
trainer = SimpleNamespace(world_size=2, global_rank=0, strategy=strategy)
ranks.RankWatch(Path({str(tmp_path)!r})).setup(trainer, None, "fit")
time.sleep(60)
"""
    write_status(tmp_path, 1, error="OSError: the cable is out")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "failed: OSError: the cable is out. Rank 0 ends within" in done.stderr


def test_restarted_ranks_meet_at_a_new_port(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = TCPStore("127.0.0.1", 0, is_master=True)
    here = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(agent.port), "TORCHELASTIC_RESTART_COUNT": "1"}
    ports = []
    for number in ("0", "1"):
        for name, value in {**here, "TORCHELASTIC_USE_AGENT_STORE": "True", "RANK": number}.items():
            monkeypatch.setenv(name, value)
        new_rendezvous_port()
        ports.append(os.environ["MASTER_PORT"])
        assert os.environ["TORCHELASTIC_USE_AGENT_STORE"] == "False"
    assert ports[0] == ports[1] != str(agent.port)


def test_torchrun_is_given_the_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ValueError("no such thing")

    assert record_errors(fail) is fail
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    with pytest.raises(ValueError, match="no such thing"):
        record_errors(fail)()
    message = json.loads((tmp_path / "error.json").read_text(encoding="utf-8"))["message"]
    assert message["message"] == "ValueError: no such thing"
    assert "in fail" in message["extraInfo"]["py_callstack"]
