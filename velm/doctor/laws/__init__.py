"""`velm selfcheck`: laws of training, decoding and checkpoints, held against a config on the machine it is to run on.

A check is a function of a `Subject` that returns a `Verdict` or raises `Skipped`; one that raises anything else failed.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch

from velm.doctor.laws.outcome import CHECKS, Outcome, Skipped, Verdict
from velm.doctor.laws.subject import Subject, quiet, subject_of

__all__ = ["CHECKS", "Outcome", "run_checks"]


def run_checks(config: Mapping[str, Any], names: Sequence[str] = tuple(CHECKS)) -> Iterator[Outcome]:
    """Each check's outcome, as soon as it is there.

    Args:
        config: of `velm.training.run.parse_fit`.
        names: of the checks to run, in `CHECKS`.

    Raises:
        ConfigError, DataError: the config cannot be trained at all; as `velm fit` would.
    """
    with quiet():
        subject = subject_of(config)
        subject.task()
        assert len(subject.batch)
    for name in names:
        with quiet(), torch.random.fork_rng(devices=[]):
            outcome = _outcome(name, subject)
        yield outcome


def _outcome(name: str, subject: Subject) -> Outcome:
    began = time.perf_counter()
    check = cast("Callable[[Subject], Verdict]", _check(name))
    try:
        verdict = check(subject)
    except Skipped as reason:
        return Outcome(name, "skipped", None, str(reason), time.perf_counter() - began)
    except Exception as error:  # whatever a part of somebody else's raises
        told = f"{type(error).__name__}: {error}"
        return Outcome(name, "failed", None, told, time.perf_counter() - began)
    status, message = ("passed", verdict.note) if verdict.fault is None else ("failed", verdict.fault)
    return Outcome(name, status, verdict.figure, message, time.perf_counter() - began)  # type: ignore[arg-type]


def _check(name: str) -> Any:
    return getattr(importlib.import_module(f"{__name__}.{name}"), f"check_{name}")
