"""The folder of a run: one run at a time writes to it; an earlier run is kept under another name, or continued."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

import lightning
from filelock import FileLock, Timeout
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only

from velm.errors import ConfigError
from velm.training.recovery.checkpoint_io import LAST, exists, is_url, join
from velm.util import write_atomically

__all__ = ["ClaimRunFolder", "RunLock", "holds_run", "is_torchrun_restart", "refuse_url", "resume_path"]

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


class ClaimRunFolder(Callback):
    """Holds the lock of the run folder; renames an earlier run in it when the new one is built and checked.

    A start that fails before its first step (a misspelt option, an invalid config, unreadable data) leaves an earlier
    run where it is, and no folder where there was none. Acts on rank 0.

    Args:
        folder: of the run.
        keep: the run in the folder is continued, so it stays.
        wait: wait for the lock of another machine rather than refuse it at once; see `RunLock`.
    """

    def __init__(self, folder: Path, *, keep: bool, wait: bool) -> None:
        self.folder, self.keep = folder, keep
        self.lock = RunLock(folder, wait=wait)
        self.locked = False

    def reserve(self) -> None:
        """Lock the folder if it exists.

        Raises:
            ConfigError: another run is writing to the folder.
        """
        if self.folder.is_dir():
            rank_zero_only(self._acquire)()

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """
        Raises:
            ConfigError: another run has begun to write to the folder; on all ranks.
        """
        refusal = ""
        if trainer.is_global_zero:
            try:
                self._claim(self.keep or bool(getattr(trainer, "fast_dev_run", False)))
            except ConfigError as error:
                refusal = str(error)
        refusal = trainer.strategy.broadcast(refusal)
        if refusal:
            raise ConfigError(refusal)
        for logger in trainer.loggers:
            getattr(logger, "begin", lambda: None)()

    def release(self) -> None:
        """Release the lock; delete the folder if it is empty."""
        if self.locked:
            self.lock.release()
            self.locked = False
            with contextlib.suppress(OSError):
                self.folder.rmdir()

    def free_path(self, name: str) -> Path:
        """Where a file goes before the run has begun: in the folder, or beside it if an earlier run is in there."""
        taken = not self.keep and holds_run(self.folder)
        return self.folder.with_name(f"{self.folder.name}.{name}") if taken else self.folder / name

    def _claim(self, keep: bool) -> None:
        if not keep and holds_run(self.folder):
            self.release()
            _set_aside(self.folder)
        if not self.locked:
            self._acquire()

    def _acquire(self) -> None:
        self.lock.acquire()
        self.locked = True


def holds_run(folder: Path) -> bool:
    """Whether a run has begun in a folder."""
    return any((folder / name).exists() for name in ("config.yaml", "metrics.csv", LAST))


def _set_aside(folder: Path) -> None:
    """Rename the folder of an earlier run: runs/x becomes runs/x.1, or the first number that is free."""
    number = 1
    while folder.with_name(f"{folder.name}.{number}").exists():
        number += 1
    renamed = folder.with_name(f"{folder.name}.{number}")
    folder.rename(renamed)
    if (renamed / "ranks").is_dir():  # status files of the new run's ranks
        folder.mkdir()
        (renamed / "ranks").rename(folder / "ranks")
    print(f"The earlier run in {folder} is now in {renamed}. To continue it: --ckpt_path {renamed}/{LAST}")
