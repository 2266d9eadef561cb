"""Time of `velm fit` by kind of operation: torch.profiler over some steps in the middle of a run.

    python -m benchmarks.profile_fit --config configs/quickstart.yaml
    python -m benchmarks.profile_fit --config configs/quickstart.yaml --data.num_workers=1

All options are passed to `velm fit`; the run uses a temporary folder and stops after the profiled steps. The floor is
the time of the matrix products and convolutions alone. "not in operations" is wall time outside torch operations:
Python, Lightning, waiting for data.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import lightning
import torch

from benchmarks.harness.shares import FLOOR, gathered

WARM, STEPS = 20, 10


class Profiled(lightning.Callback):
    """Profiles `STEPS` complete steps after `WARM` of them, from batch end to batch end; prints a table."""

    def __init__(self) -> None:
        self.profiler = torch.profiler.profile()
        self.start = 0.0

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        if trainer.global_step == WARM:
            self.profiler.__enter__()
            self.start = time.perf_counter()
        elif trainer.global_step == WARM + STEPS:
            seconds = (time.perf_counter() - self.start) / STEPS
            self.profiler.__exit__(None, None, None)
            kinds = {name: value / STEPS for name, value in gathered(self.profiler, "cpu").items()}
            print(table(seconds, kinds))


def table(seconds: float, kinds: Mapping[str, float]) -> str:
    """Markdown table of a step of this duration."""
    rows = {**kinds, "not in operations": seconds - sum(kinds.values())}
    lines = [f"A step of {seconds:.3f} s", "", "| | seconds | share |", "| --- | --- | --- |"]
    lines += [f"| {name} | {value:.4f} | {value / seconds:.0%} |" for name, value in rows.items()]
    floor = kinds.get(FLOOR, 0.0) + kinds.get("convolutions", 0.0)
    return "\n".join([*lines, "", f"The floor is {floor / seconds:.0%} of it."])


def main(arguments: list[str]) -> None:
    from velm.training.run import main as velm

    with tempfile.TemporaryDirectory() as folder:
        limits = [f"--trainer.max_steps={WARM + STEPS}", "--trainer.limit_val_batches=0"]
        callback = "--trainer.callbacks+=benchmarks.profile_fit.Profiled"
        velm(["fit", *arguments, *limits, callback, f"--trainer.default_root_dir={folder}"])


if __name__ == "__main__":
    main(sys.argv[1:])
