"""A trial as a process: `velm fit` in a run folder of its own, what it has measured, and why it ended."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from filelock import FileLock, Timeout

from velm.errors import ConfigError
from velm.report.curves import read_curves

__all__ = ["LOG", "Process", "describe_end", "environment", "last_lines", "start_fit", "trial_folder", "validations"]

LOG = "log.txt"
WAIT = 120.0
"""Seconds that a trial of an earlier sweep has to save its checkpoint and end."""


class Process(Protocol):
    """What a sweep needs of `subprocess.Popen`."""

    def poll(self) -> int | None: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


def trial_folder(folder: Path, number: int) -> Path:
    """The run folder of a trial."""
    return folder / f"trial_{number:03d}"


def start_fit(options: Sequence[str], folder: Path, env: Mapping[str, str]) -> Process:
    """Start or continue the run in a folder; its output is appended to log.txt.

    The run gets no Ctrl-C of the terminal: the sweep sends it SIGTERM, with which a run saves its checkpoint. On Linux
    it gets the same signal when the sweep is killed.

    Raises:
        ConfigError: a run of an earlier sweep still writes to the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _await_end(folder)
    command = [sys.executable, "-m", "velm", "fit", *options, f"--trainer.default_root_dir={folder}", "--resume"]
    linux = sys.platform == "linux"
    with (folder / LOG).open("ab") as log:
        return subprocess.Popen(
            command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            start_new_session=True, preexec_fn=_end_with_sweep if linux else None,
        )  # fmt: skip


def _end_with_sweep() -> None:
    """Ask Linux for SIGTERM when the parent process ends (prctl(2), PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def _await_end(folder: Path) -> None:
    lock = FileLock(folder / "run.lock")
    try:
        lock.acquire(timeout=WAIT)
    except Timeout:
        raise ConfigError(
            f"{folder} is still used by a run of an earlier sweep ({folder / 'run.lock.json'} names the process): end "
            f"it and start the sweep again."
        ) from None
    lock.release()


def environment(slot: int, jobs: int, *, cores: int, gpus: Sequence[str]) -> dict[str, str]:
    """The environment variables of a trial, so that `jobs` of them share the machine.

    Args:
        slot: which of the trials that run at a time, from 0.
        jobs: how many do.
        cores: of the machine; a trial computes with cores / jobs threads.
        gpus: names for CUDA_VISIBLE_DEVICES; a trial gets its share of them, or one of fewer than `jobs`.
    """
    env = dict(os.environ)
    if jobs > 1:
        threads = max(1, cores // jobs)
        given = env.get("OMP_NUM_THREADS", "")
        env["OMP_NUM_THREADS"] = str(min(threads, int(given)) if given.isdigit() else threads)
        if gpus:
            share = gpus[slot::jobs] if len(gpus) >= jobs else [gpus[slot % len(gpus)]]
            env["CUDA_VISIBLE_DEVICES"] = ",".join(share)
    return env


def validations(folder: Path, metric: str) -> list[float]:
    """A metric of each validation of a run so far, without NaN and infinite ones."""
    file = folder / "metrics.csv"
    try:
        status = file.stat()
    except OSError:
        return []
    return list(_column(file, metric, status.st_mtime_ns, status.st_size))


@lru_cache(maxsize=64)
def _column(file: Path, metric: str, *status: int) -> tuple[float, ...]:
    """A long metrics.csv is read when it has changed, not at every look."""
    return tuple(value for _, value in read_curves(file).get(metric, []))


def describe_end(code: int, folder: Path) -> str:
    """Why a run failed: its exit code or signal, and the last line of its log."""
    lines = last_lines(folder, 1)
    if code < 0:
        name = signal.Signals(-code).name
        cause = f"killed by {name}{' (lack of memory?)' if name == 'SIGKILL' else ''}"
    else:
        cause = f"exit code {code}"
    return f"{cause}: {lines[0]}" if lines else cause


def last_lines(folder: Path, count: int) -> list[str]:
    """The last lines of a run's log that are not blank."""
    try:
        text = (folder / LOG).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return [line.strip() for line in text.splitlines() if line.strip()][-count:]
