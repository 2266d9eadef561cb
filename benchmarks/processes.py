"""Commands that a workload measures as a whole: run to their end, with their highest memory."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

__all__ = ["ROOT", "Finished", "run"]

ROOT = Path(__file__).parents[1]
EVERY = 0.25  # seconds from one look at memory to the next


class Finished:
    """What a command said, and the most memory it took, MiB.

    Attributes:
        output: stdout and stderr together.
        peak_mb: the highest resident size of the process alone; with `tree`, of it and its children together, memory
            that they share counted once (Linux).
    """

    def __init__(self, output: str, peak_mb: float) -> None:
        self.output, self.peak_mb = output, peak_mb


def run(
    command: Sequence[str],
    *,
    folder: str | Path,
    threads: int,
    extra: Mapping[str, str] | None = None,
    tree: bool = False,
) -> Finished:
    """Run a command of this Python in a folder; `benchmarks` and `velm` are importable there.

    Args:
        command: what comes after `python`.
        folder: the working directory.
        threads: of torch.
        extra: variables of the environment.
        tree: look at children's memory too, a few times a second.

    Raises:
        AssertionError: it ended with an error, whose last lines are told.
    """
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    set_up = {"PYTHONPATH": path, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    environment = {**os.environ, **set_up, **(extra or {})}
    log = Path(folder) / "said.txt"
    with open(log, "wb") as sink:
        child = subprocess.Popen(
            [sys.executable, *command], cwd=folder, env=environment, stdout=sink, stderr=subprocess.STDOUT
        )
        seen = _Tree(child.pid) if tree else None
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    peak = usage.ru_maxrss / 1024 if seen is None else seen.stop()
    output = log.read_text(encoding="utf-8", errors="replace")
    last = "\n".join(output.strip().splitlines()[-8:])
    assert child.returncode == 0, f"{' '.join(command)}: exit status {child.returncode}\n{last}"
    return Finished(output, peak)


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
            self.most = max(self.most, sum(map(_share, _family(self.pid))) / 1024)


def _family(pid: int) -> list[int]:
    """The process and all that descend from it."""
    found = [pid]
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += _family(int(child))
    return found


def _share(pid: int) -> int:
    """KiB of a process, each shared page divided by how many share it."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    return 0
