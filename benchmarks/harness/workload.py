"""A workload: the same work done by several systems, with a proof that it is the same."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

__all__ = ["OURS", "Agreement", "Run", "Settings", "Workload", "require"]

OURS = "velm"


@dataclass(frozen=True)
class Settings:
    """Settings that are the same for every system of a workload.

    Attributes:
        precision: 'bf16' (autocast in training) or '32'.
        threads: torch threads of each process.
        device: 'cpu' or 'cuda'.
        compile: use torch.compile, on both sides if both support it.
    """

    precision: str = "bf16"
    threads: int = 2
    device: str = "cpu"
    compile: bool = False

    def dumps(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def loads(text: str) -> Settings:
        return Settings(**json.loads(text))


@dataclass
class Run:
    """A system, prepared in its own process.

    Attributes:
        step: does the work once; returns the number of its units (samples, tokens, images).
        prepare: called once before the first step, whose extra memory is measured from there; allocates what every step
            needs (gradients, optimizer state).
        warm: number of warm-up steps.
        steps: number of measured steps; the process reports their median.
        extra_mb: peak memory, for a step that runs in processes of its own; None: measure this process.
    """

    step: Callable[[], int]
    prepare: Callable[[], None] | None = None
    warm: int = 2
    steps: int = 5
    extra_mb: Callable[[], float] | None = None


class Agreement(NamedTuple):
    """One line of the proof: the quantity compared, and both values (numbers, or text such as 'equal')."""

    what: str
    ours: Any
    theirs: Any
    note: str = ""


@dataclass(frozen=True)
class Workload:
    """The same work for several systems.

    Attributes:
        name: on the command line and in results.json; 'generate' also selects 'generate_beams'.
        title: one line that describes the work and its sizes.
        unit: unit of a step, in the plural.
        systems: by name, a function that builds its `Run`; called in its own process, so it imports what it needs.
        against: {peer: the system of VELM that it is compared with}; the ratio is the peer's median over VELM's.
        prove: shows that the work is the same, or raises AssertionError; called in its own process.
        repeats: default number of processes per system.
        profiled: the system of VELM whose step is profiled by torch.profiler; None: no profile.
    """

    name: str
    title: str
    unit: str
    systems: Mapping[str, Callable[[Settings], Run]]
    against: Mapping[str, str]
    prove: Callable[[Settings], list[Agreement]]
    repeats: int = 5
    profiled: str | None = OURS
    notes: tuple[str, ...] = field(default=())


def require(module: str) -> None:
    """Exit with a line that says what to install if a peer is not installed."""
    try:
        __import__(module)
    except ImportError as error:
        sys.exit(f"The peers are missing ({error.name!r}): pip install '.[bench]', in VELM's folder.")
