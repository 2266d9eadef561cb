"""One run in a folder: a second one is refused before it touches anything."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import socket
import tempfile
import threading
import time
from pathlib import Path
from typing import IO, Any

from velm.errors import ConfigError

try:
    import fcntl
except ImportError:  # Windows: the touch has to do
    fcntl = None  # type: ignore[assignment]

__all__ = ["FILE", "SILENCE", "RunLock"]

FILE = "run.lock"
BEAT = 20.0
"""Seconds after which the owner touches its lock again."""
SILENCE = 120.0
"""Seconds without a touch after which a lock of another machine is that of a run which is no more."""


class RunLock:
    """`run.lock` in a run's folder: who writes there, {"host", "pid", "job"}.

    On one machine the kernel holds it (a POSIX record lock, which workers do not inherit) and lets go of it however the
    process ends, so what a killed run leaves is taken over at once. A run on another machine, which shares the folder
    by a network, is told by its touch every 20 seconds; one that has been silent for 2 minutes is taken over, and so is
    one of the same SLURM job, which SLURM starts again only when it has ended.

    Args:
        folder: of the run; made if it is not there.
        wait: wait until a silent lock of another machine may be taken over, rather than refuse it at once: for a run
            that the cluster starts again by itself.
    """

    def __init__(self, folder: Path, wait: bool = False) -> None:
        self.file, self.wait = folder / FILE, wait
        self._stream: IO[str] | None = None
        self._stop = threading.Event()

    def take(self) -> None:
        """
        Raises:
            ConfigError: another run has it; the message says which, and what to do.
        """
        self.file.parent.mkdir(parents=True, exist_ok=True)
        stream = open(self.file, "a+", encoding="utf-8")  # noqa: SIM115 - open as long as the run lasts
        try:
            self._hold(stream)
            self._refuse_living(stream)
        except BaseException:
            stream.close()
            raise
        stream.truncate(0)
        stream.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "job": _job()}))
        stream.flush()
        self._stream = stream
        self._stop.clear()
        threading.Thread(target=self._beat, args=(stream.fileno(), self._stop), daemon=True).start()
        atexit.register(self.release)

    def release(self) -> None:
        """Let go; a second time does nothing."""
        if self._stream is None:
            return
        self._stop.set()
        with contextlib.suppress(OSError):
            os.unlink(self.file)
        self._stream.close()
        self._stream = None
        atexit.unregister(self.release)

    def _hold(self, stream: IO[str]) -> None:
        try:
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise ConfigError(self._refusal(_owner(stream))) from None
        except (OSError, AttributeError):
            pass  # a network's file system without locks, or no fcntl: the touch has to do

    def _refuse_living(self, stream: IO[str]) -> None:
        """Refuse a lock of another machine, unless its run is no more."""
        owner = _owner(stream)
        if not owner or owner.get("host") == socket.gethostname() or (_job() and owner.get("job") == _job()):
            return
        touched = os.stat(self.file).st_mtime
        age = _now(self.file.parent) - touched
        if self.wait and age < SILENCE:
            print(
                f"{self.file} is of {_name(owner)}: waiting {SILENCE - age:.0f} s to see whether it lives.", flush=True
            )
            until = time.monotonic() + SILENCE - age
            while time.monotonic() < until and os.stat(self.file).st_mtime == touched:
                time.sleep(0.2)
            age = _now(self.file.parent) - os.stat(self.file).st_mtime
        if age < SILENCE:
            raise ConfigError(
                f"{self._refusal(owner)} It gave a sign of life {age:.0f} s ago; if that machine is gone, wait "
                f"{SILENCE - age:.0f} s more or delete {self.file}."
            )

    def _refusal(self, owner: dict[str, Any]) -> str:
        return (
            f"{self.file.parent} is used by another run ({_name(owner)}), and two runs in a folder overwrite each "
            f"other. Wait for it, end it, or give this one a folder of its own: --trainer.default_root_dir=..."
        )

    def _beat(self, descriptor: int, stop: threading.Event) -> None:
        while not stop.wait(BEAT):
            with contextlib.suppress(OSError):
                os.utime(descriptor)


def _owner(stream: IO[str]) -> dict[str, Any]:
    stream.seek(0)
    try:
        return dict(json.loads(stream.read()))
    except ValueError:  # nothing, or half a line: whoever took it has not got far
        return {}


def _name(owner: dict[str, Any]) -> str:
    return f"process {owner.get('pid', 'unknown')} on {owner.get('host', 'this machine')}"


def _job() -> str | None:
    return os.environ.get("SLURM_JOB_ID")


def _now(folder: Path) -> float:
    """The time by the clock of the folder's file system."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".now") as file:
        return os.stat(file.name).st_mtime
