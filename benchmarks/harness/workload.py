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
    """What every system of a workload is given alike.

    Attributes:
        precision: 'bf16' (autocast where training is measured) or '32'.
        threads: of torch, in each process.
        device: 'cpu' or 'cuda'.
        compile: hand models to torch.compile, on both sides where both can.
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
    """A system made ready in a process of its own.

    Attributes:
        step: does the work once; returns how many units of it (samples, tokens, images) that was.
        prepare: called once before the first step, whose extra memory is measured from there: what a step always needs
            (gradients, the optimizer's state) is made here.
        warm: steps that are not counted.
        steps: steps that are; the process reports their median.
        extra_mb: of a step that works in processes of its own, the peak they report; None: this process is looked at.
    """

    step: Callable[[], int]
    prepare: Callable[[], None] | None = None
    warm: int = 2
    steps: int = 5
    extra_mb: Callable[[], float] | None = None


class Agreement(NamedTuple):
    """One line of the proof: what was compared, and both values (numbers, or the words 'equal' and so on)."""

    what: str
    ours: Any
    theirs: Any
    note: str = ""


@dataclass(frozen=True)
class Workload:
    """The same work for several systems.

    Attributes:
        name: on the command line and in results.json; 'generate_beams' also runs where 'generate' is asked for.
        title: a line that says what is done, with its sizes.
        unit: what a step counts, in the plural.
        systems: by name, each builds its `Run`; called in a process of its own, so imports belong inside.
        against: {peer: the system of ours it is held against}; the ratio is the peer's median by ours.
        prove: shows that the work is the same, or raises AssertionError; called in a process of its own.
        repeats: processes of each system, when nobody says how many.
        profiled: ours whose step goes through torch.profiler for the share-of-time table; None: no table.
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
    """Leave with a line that says what to install where a peer is not there."""
    try:
        __import__(module)
    except ImportError as error:
        sys.exit(f"The peers are missing ({error.name!r}): pip install '.[bench]', in VELM's folder.")
