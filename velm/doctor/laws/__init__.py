"""`velm selfcheck`: laws of training, decoding and checkpoints, checked for a config on the CPU of this machine.

A check is a function of a `SmallRun` that returns a `Finding`: ok, skipped, or an error that says what differs, by how
much and where. An exception is an error too.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch

from velm.doctor.laws.small_run import SmallRun, quiet
from velm.findings import Finding

__all__ = ["CHECKS", "run_checks"]

#: Every check and what it compares.
CHECKS: dict[str, str] = {
    "processes": "gradients of two processes with half the batch each, and of one with the whole batch",
    "micro_batch": "gradients of micro-batches computed twice, of micro-batches kept, and of the whole batch",
    "decoding": "stepping with a cache, one forward pass over the whole text, and the captioning loss by its formula",
    "resume": "a run that was stopped and resumed, and one that was not, bit for bit",
    "checkpoint": "what was saved, and what `velm.load` makes of the file, bit for bit",
}


def run_checks(config: Mapping[str, Any], names: Sequence[str] = tuple(CHECKS)) -> Iterator[Finding]:
    """The finding of each check, as soon as it is known.

    Args:
        config: of `velm.training.run.parse_fit`.

    Raises:
        ConfigError, DataError: the config cannot be trained; the error is that of `velm fit`.
    """
    with quiet():
        run = SmallRun.of(config)
        run.task()
        assert len(run.batch)
    for name in names:
        with quiet(), torch.random.fork_rng(devices=[]):
            finding = _timed(name, run)
        yield finding


def _timed(name: str, run: SmallRun) -> Finding:
    start = time.perf_counter()
    module = importlib.import_module(f"{__name__}.{name}")
    check = cast("Callable[[SmallRun], Finding]", getattr(module, f"check_{name}"))
    try:
        finding = check(run)
    except Exception as error:  # of any part
        finding = Finding(name, "error", f"{type(error).__name__}: {error}")
    return replace(finding, seconds=round(time.perf_counter() - start, 3))
