"""CPU load of other processes during a measurement, from /proc; None on systems without /proc."""

from __future__ import annotations

import os
import time
from pathlib import Path

__all__ = ["Watch", "tree"]

TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


class Watch:
    """Starts on construction; `others()` is the mean number of cores used by other processes since then."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.busy, self.own = _busy_seconds(), _tree_seconds()

    def others(self) -> float | None:
        """Number of cores, at least 0; None if it cannot be measured."""
        if self.busy is None:
            return None
        busy, own = _busy_seconds(), _tree_seconds()
        assert busy is not None
        return max(0.0, (busy - self.busy) - (own - self.own)) / max(time.perf_counter() - self.start, 1e-9)


def tree(pid: int) -> list[int]:
    """A process and all of its running descendants."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [one for child in task.read_text().split() for one in tree(int(child))]
        except OSError:  # the process has ended
            continue
    return found


def _busy_seconds() -> float | None:
    """CPU seconds of all cores since the machine started, including time taken by a hypervisor."""
    try:
        first = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    except OSError:
        return None
    user, nice, system, _idle, _wait, irq, soft, steal = (int(number) for number in first)
    return (user + nice + system + irq + soft + steal) / TICKS


def _tree_seconds() -> float:
    """CPU seconds of this process and its descendants."""
    total = 0.0
    for pid in tree(os.getpid()):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += sum(int(number) for number in fields[11:15]) / TICKS  # its own and those of finished children
    return total
