"""Runs whole commands for a workload and measures their peak memory."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from benchmarks.harness.load import tree
from benchmarks.harness.turns import ROOT, environment

__all__ = ["ROOT", "Finished", "peak_of", "run"]

EVERY = 0.25  # seconds between two samples of memory
SMALL_PARENT = (
    "import os, resource, sys; os.spawnv(os.P_WAIT, sys.argv[1], sys.argv[1:]); "
    "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
)


class Finished(NamedTuple):
    """Output of a command, stdout and stderr together; with `tree`, its peak memory in MiB."""

    output: str
    peak_mb: float


def run(command: Sequence[str], *, folder: str | Path, threads: int, tree: bool = False) -> Finished:
    """Run a command of this Python in a folder; it can import `benchmarks` and `velm`.

    Args:
        command: arguments after `python`.
        folder: the working directory.
        threads: of torch.
        tree: sample the memory of the process and its children a few times per second, shared memory once (Linux).

    Raises:
        AssertionError: it ended with an error; the message has its last lines.
    """
    log = Path(folder) / "said.txt"
    with open(log, "wb") as sink:
        child = subprocess.Popen(
            [sys.executable, *command], cwd=folder, env=environment(threads), stdout=sink, stderr=subprocess.STDOUT
        )
        seen = _Tree(child.pid) if tree else None
        child.wait()
    peak = 0.0 if seen is None else seen.stop()
    output = log.read_text(encoding="utf-8", errors="replace")
    last = "\n".join(output.strip().splitlines()[-8:])
    assert child.returncode == 0, f"{' '.join(command)}: exit status {child.returncode}\n{last}"
    return Finished(output, peak)


def peak_of(command: Sequence[str], *, threads: int) -> float:
    """Peak resident memory of a short command, in MiB.

    The kernel attributes the parent's memory at the start of a process to that process, so the parent is a Python
    process with few imports.
    """
    with tempfile.TemporaryDirectory() as folder:
        said = run(["-S", "-c", SMALL_PARENT, sys.executable, *command], folder=folder, threads=threads).output
    return float(said.split()[-1]) / 1024


class _Tree:
    """Peak memory of a process and its children, by sampling."""

    def __init__(self, pid: int) -> None:
        self.pid, self.most = pid, 0.0
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def stop(self) -> float:
        self.ended.set()
        self.thread.join()
        return self.most

    def _watch(self) -> None:
        while not self.ended.wait(EVERY):
            self.most = max(self.most, sum(map(_share, tree(self.pid))) / 1024)


def _share(pid: int) -> int:
    """KiB of a process; each shared page is divided by the number of processes that share it."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    return 0
