"""Measures the systems in alternation (A B C A B C ...), each in its own process; repeats disturbed measurements."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.harness.workload import Settings, Workload

__all__ = ["CALM", "ROOT", "Failed", "Measured", "environment", "in_a_process", "take_turns"]

ROOT = Path(__file__).parents[2]
CALM = 0.2
"""Cores that others may take during a measurement."""
TRIES = 3
"""Processes for one measurement, where others disturb it; the least disturbed counts then."""


class Failed(RuntimeError):
    """The process of a measurement ended with an error."""


@dataclass
class Measured:
    """The measurements of one system.

    Attributes:
        seconds: of a step, one value per process.
        units: units per step.
        extra_mb: one value per process.
        others: number of cores used by other processes in the meantime; None if unknown.
        redone: number of processes whose results are discarded because they were disturbed.
    """

    seconds: list[float] = field(default_factory=list)
    units: int = 0
    extra_mb: list[float] = field(default_factory=list)
    others: list[float | None] = field(default_factory=list)
    redone: int = 0

    @property
    def median_s(self) -> float:
        return statistics.median(self.seconds)

    @property
    def disturbed(self) -> int:
        """Number of counted measurements that were disturbed nevertheless."""
        return sum(others is not None and others > CALM for others in self.others)

    def metrics(self) -> dict[str, float]:
        """The metrics of results.json."""
        return {
            "median_s": self.median_s,
            "min_s": min(self.seconds),
            "max_s": max(self.seconds),
            "per_s": self.units / self.median_s,
            "extra_mb": statistics.median(self.extra_mb),
            "others_cores": max((others for others in self.others if others is not None), default=float("nan")),
            "disturbed": self.disturbed,
        }


Measure = Callable[[str], dict[str, Any]]


def take_turns(
    workload: Workload, measure: Measure, repeats: int, say: Callable[[str], None] = print
) -> dict[str, Measured]:
    """`repeats` undisturbed measurements of each system, in alternation.

    Args:
        workload: the workload.
        measure: from the name of a system to the result of its process (see `benchmarks.harness.child.measure`).
        repeats: number of measurements per system.
        say: called with a line for each measurement.
    """
    found = {system: Measured() for system in workload.systems}
    for turn in range(repeats):
        for system, measured in found.items():
            tries = []
            while len(tries) < TRIES:
                tries.append(measure(system))
                if tries[-1]["others"] is None or tries[-1]["others"] <= CALM:
                    break
            best = min(tries, key=lambda one: one["others"] or 0.0)
            measured.seconds.append(best["seconds"])
            measured.units = best["units"]
            measured.extra_mb.append(best["extra_mb"])
            measured.others.append(best["others"])
            measured.redone += len(tries) - 1
            load = "" if best["others"] is None else f", others {best['others']:.2f} cores"
            say(f"  {turn + 1}/{repeats} {system:<20} {best['seconds']:8.3f} s{load}")
    return found


def environment(threads: int) -> dict[str, str]:
    """Environment variables for a process with this number of torch threads that can import `benchmarks` and `velm`."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}


def in_a_process(task: str, workload: Workload, system: str, settings: Settings) -> Any:
    """The result of `benchmarks.harness.child`.

    Raises:
        Failed: it ended with an error; the message has its last lines.
    """
    calm = {**environment(settings.threads), "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "found.json"
        command = [sys.executable, "-m", "benchmarks.harness.child", task, workload.name, system, settings.dumps()]
        done = subprocess.run([*command, str(output)], env=calm, capture_output=True, text=True, check=False)
        if done.returncode or not output.exists():
            said = "\n".join((done.stderr or done.stdout).strip().splitlines()[-8:])
            raise Failed(f"{task} of {workload.name}, {system}: exit status {done.returncode}\n{said}")
        return json.loads(output.read_text(encoding="utf-8"))
