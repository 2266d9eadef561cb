"""Time from process start to the first optimizer step, and to the output of a command that does not train."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness.workload import OURS, Agreement, Run, Settings, Workload
from benchmarks.processes import ROOT, peak_of, run

__all__ = ["WORKLOADS", "fit_command", "lightning_command"]

QUICKSTART = ROOT / "configs" / "quickstart.yaml"
HELP, PLUGINS = ("-m", "velm.cli", "--help"), ("-m", "velm.cli", "plugins")
BARE = ("-c", "import argparse, json, importlib.metadata")
WITNESS = "witness.json"


def fit_command(folder: str) -> list[str]:
    """`velm fit` unmodified; a callback ends it at the first step."""
    return [
        "-m", "velm.cli", "fit", "--config", str(QUICKSTART),
        "--data.batch_size=32", "--trainer.limit_val_batches=0",
        "--trainer.callbacks+=benchmarks.witness.FirstStep", f"--trainer.callbacks.path={folder}/{WITNESS}",
    ]  # fmt: skip


def lightning_command(folder: str) -> list[str]:
    """The hand-written script; the same callback ends it."""
    return ["-m", "benchmarks.peers.bare_lightning", f"{folder}/runs/quickstart", f"{folder}/{WITNESS}"]


def to_first_step(command: Callable[[str], list[str]]) -> Callable[[Settings], Run]:
    def system(settings: Settings) -> Run:
        peaks = []

        def step() -> int:
            peaks.append(_witnessed(command, settings)["peak_mb"])
            return 1

        return Run(step, warm=1, steps=1, extra_mb=lambda: max(peaks))

    return system


def whole(command: Sequence[str]) -> Callable[[Settings], Run]:
    """A command from start to end."""

    def system(settings: Settings) -> Run:
        def step() -> int:
            with tempfile.TemporaryDirectory() as folder:
                run(command, folder=folder, threads=settings.threads)
            return 1

        return Run(step, warm=1, steps=5, extra_mb=lambda: peak_of(command, threads=settings.threads))

    return system


def prove(settings: Settings) -> list[Agreement]:
    """Equal sizes, batches and loggers; both use the drawings of `velm.data.synthetic.shapes`."""
    ours, theirs = (_witnessed(command, settings) for command in (fit_command, lightning_command))
    names = {"parameters": "parameters", "samples": "samples in the step", "batches": "steps in an epoch",
             "loggers": "loggers"}  # fmt: skip
    lines = [Agreement(what, ours[name], theirs[name]) for name, what in names.items()]
    assert all(line.ours == line.theirs for line in lines), lines
    return lines


def prove_commands(settings: Settings) -> list[Agreement]:
    """Neither side imports torch; the output differs and is not compared."""
    found = []
    for command in (("-m", "velm.cli", "--help"), BARE):
        with tempfile.TemporaryDirectory() as folder:
            said = run(["-X", "importtime", *command], folder=folder, threads=settings.threads).output
        modules = {line.rpartition("|")[2].strip() for line in said.splitlines() if line.startswith("import time:")}
        found.append(len(modules & {"torch", "lightning", "transformers", "numpy"}))
    assert found == [0, 0], found
    return [Agreement("heavy modules imported", *found, "torch, lightning, transformers, numpy")]


def _witnessed(command: Callable[[str], list[str]], settings: Settings) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        run(command(folder), folder=folder, threads=settings.threads)
        found: dict[str, Any] = json.loads((Path(folder) / WITNESS).read_text(encoding="utf-8"))
        return found


def _command(name: str, what: str, command: Sequence[str]) -> Workload:
    return Workload(
        name=name,
        title=f"`{what}`, beside Python that imports argparse, json and importlib.metadata",
        unit="starts",
        systems={OURS: whole(command), "python": whole(BARE)},
        against={"python": OURS},
        prove=prove_commands,
        profiled=None,
        notes=("Python does nothing but import: its time is the least that any command needs.",),
    )


WORKLOADS = [
    Workload(
        name="startup",
        title="From the start of the process to the first optimizer step: configs/quickstart.yaml, 32 images",
        unit="starts",
        systems={OURS: to_first_step(fit_command), "lightning": to_first_step(lightning_command)},
        against={"lightning": OURS},
        prove=prove,
        profiled=None,
        notes=(
            "lightning is a script by hand, benchmarks/peers/bare_lightning.py: no command line, no config, no "
            "checks, no plugins. Most of both times is `import lightning`.",
            "Memory is the highest resident size of the process, not what a step adds.",
        ),
    ),
    _command("startup_help", "velm --help", HELP),
    _command("startup_plugins", "velm plugins", PLUGINS),
]
