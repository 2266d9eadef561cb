"""The folder of a run: one run at a time writes to it; an earlier run is kept under another name, or continued."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from lightning.pytorch.utilities import rank_zero_only

from velm.errors import ConfigError
from velm.training.recovery.checkpoint_io import LAST, exists, is_url, join
from velm.util import write_atomically

__all__ = ["RunLock", "claim_run_folder", "is_torchrun_restart", "refuse_url", "resume_path"]

WAIT = 120.0
"""Seconds that a restarted run waits for the lock of another machine."""


def is_torchrun_restart() -> bool:
    """Whether torchrun has restarted the processes of this run after one of them failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


def refuse_url(folder: str) -> None:
    """
    Raises:
        ConfigError: the run folder is a URL.
    """
    if is_url(folder):
        raise ConfigError(
            f"trainer.default_root_dir is {folder}, but metrics and the lock of a run need a folder on a disk. Set it "
            f"to a local folder, and --checkpoint_dir={folder} for the checkpoints."
        )


def resume_path(checkpoints: str, ckpt_path: Any) -> Any:
    """The checkpoint that --resume continues from: the run's last.ckpt, else `ckpt_path` (None: start from scratch)."""
    last = join(checkpoints, LAST)
    return last if exists(last) else ckpt_path


class RunLock:
    """The lock of a run folder, held by rank 0 from start to end.

    The operating system holds `run.lock` and releases it however the process ends, so the lock of a killed run is free
    at once. `run.lock.json` beside it names the holder, {"pid", "host", "command"}, for the error of a second run.

    Args:
        folder: of the run; created if missing.
        wait: if the holder runs on another machine, wait up to `WAIT` seconds before refusing: a network file system
            releases the locks of a dead machine late, and the cluster has already restarted the run here.
    """

    def __init__(self, folder: Path, wait: bool = False) -> None:
        self.folder, self.wait, self.holder = folder, wait, folder / "run.lock.json"
        self._lock = FileLock(folder / "run.lock")

    def acquire(self) -> None:
        """
        Raises:
            ConfigError: another run holds the lock; the message names it and says what to do.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        host = self._read_holder().get("host", socket.gethostname())
        timeout = WAIT if self.wait and host != socket.gethostname() else 0
        if timeout:
            print(f"Waiting up to {timeout:.0f} s for {host} to release {self.folder}.", flush=True)
        try:
            self._lock.acquire(timeout=timeout)
        except Timeout:
            row = self._read_holder()
            holder = f"process {row['pid']} on {row['host']}: {row['command']}" if row else "process unknown"
            raise ConfigError(
                f"{self.folder} is used by another run ({holder}), and two runs in one folder overwrite each other. "
                f"Wait for it, end it, or give this run its own folder: --trainer.default_root_dir=..."
            ) from None
        row = {"pid": os.getpid(), "host": socket.gethostname(), "command": " ".join(sys.argv)}
        with write_atomically(self.holder) as partial:
            partial.write_text(json.dumps(row), encoding="utf-8")

    def release(self) -> None:
        """Release the lock and delete its files; does nothing if it is not held."""
        if self._lock.is_locked:
            with contextlib.suppress(OSError):
                self.holder.unlink(missing_ok=True)
                os.unlink(self._lock.lock_file)
            self._lock.release()

    def _read_holder(self) -> dict[str, Any]:
        """What run.lock.json says; empty while a holder has the lock and has not written the file yet."""
        try:
            return dict(json.loads(self.holder.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return {}


@rank_zero_only
def claim_run_folder(folder: Path, *, keep: bool, wait: bool) -> RunLock | None:
    """Lock the folder; move an earlier run in it aside unless `keep`. Returns None on ranks other than 0.

    Raises:
        ConfigError: another run is writing to the folder.
    """
    lock = RunLock(folder, wait=wait)
    lock.acquire()
    if not keep and any((folder / name).exists() for name in ("config.yaml", "metrics.csv", LAST)):
        lock.release()
        _set_aside(folder)
        lock.acquire()
    return lock


def _set_aside(folder: Path) -> None:
    """Rename the folder of an earlier run: runs/x becomes runs/x.1, or the first number that is free."""
    number = 1
    while folder.with_name(f"{folder.name}.{number}").exists():
        number += 1
    renamed = folder.with_name(f"{folder.name}.{number}")
    folder.rename(renamed)
    print(f"The earlier run in {folder} is now in {renamed}. To continue it: --ckpt_path {renamed}/{LAST}")
