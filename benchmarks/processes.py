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

EVERY = 0.25  # seconds from one look at memory to the next
SMALL_PARENT = (
    "import os, resource, sys; os.spawnv(os.P_WAIT, sys.argv[1], sys.argv[1:]); "
    "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
)


class Finished(NamedTuple):
    """What a command said, stdout and stderr together; with `tree`, the most memory it took, MiB."""

    output: str
    peak_mb: float


def run(command: Sequence[str], *, folder: str | Path, threads: int, tree: bool = False) -> Finished:
    """Run a command of this Python in a folder; `benchmarks` and `velm` are importable there.

    Args:
        command: what comes after `python`.
        folder: the working directory.
        threads: of torch.
        tree: look a few times a second how much memory the process and its children take together; what they share
            counts once (Linux).

    Raises:
        AssertionError: it ended with an error, whose last lines are told.
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
    """The highest resident size of a command that is soon over, MiB.

    The kernel counts what the parent takes when it starts a process as that process's own, so the parent is a Python
    that has imported next to nothing.
    """
    with tempfile.TemporaryDirectory() as folder:
        said = run(["-S", "-c", SMALL_PARENT, sys.executable, *command], folder=folder, threads=threads).output
    return float(said.split()[-1]) / 1024


class _Tree:
    """The most memory of a process and its children, looked at now and then."""

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
    """KiB of a process, each shared page divided by how many share it."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    return 0
