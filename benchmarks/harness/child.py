"""One measurement, proof or profile in its own process: the program `python -m benchmarks.harness.child`."""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.harness.load import Watch
from benchmarks.harness.memory import Peak
from benchmarks.harness.workload import Run, Settings, Workload

__all__ = ["TASKS"]


def measure(workload: Workload, system: str, settings: Settings) -> dict[str, Any]:
    """Median seconds of a step, its units, extra memory of the first step, load by other processes."""
    run = _ready(workload, system, settings)
    if run.prepare is not None:
        run.prepare()
    peak = Peak(settings.device)
    units = run.step()
    _wait(settings)
    extra = peak.extra_mb()
    for _ in range(run.warm - 1):
        run.step()
    watch, seconds = Watch(), []
    for _ in range(run.steps):
        _wait(settings)
        start = time.perf_counter()
        units = run.step()
        _wait(settings)
        seconds.append(time.perf_counter() - start)
    others = watch.others()
    if run.extra_mb is not None:
        extra = run.extra_mb()
    return {"seconds": statistics.median(seconds), "units": units, "extra_mb": extra, "others": others}


def prove(workload: Workload, system: str, settings: Settings) -> list[Any]:
    """The lines of the proof."""
    return [list(line) for line in workload.prove(settings)]


def profile(workload: Workload, system: str, settings: Settings) -> dict[str, float]:
    """Seconds of a step by kind of operation."""
    from benchmarks.harness.shares import shares

    run = _ready(workload, system, settings)
    for _ in range(run.warm):
        run.step()
    return shares(run.step, settings.device)


TASKS = {"measure": measure, "prove": prove, "profile": profile}


def _ready(workload: Workload, system: str, settings: Settings) -> Run:
    return workload.systems[system](settings)


def _wait(settings: Settings) -> None:
    if settings.device == "cuda":
        import torch

        torch.cuda.synchronize()


def main(arguments: list[str]) -> None:
    """Arguments: task, workload, system, settings, and the file to write the result to."""
    from benchmarks.workloads import all_workloads

    task, name, system, settings, output = arguments
    found = TASKS[task](all_workloads()[name], system, Settings.loads(settings))
    Path(output).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
