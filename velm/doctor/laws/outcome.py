"""What a check of `velm selfcheck` says, and how all of it is told."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

__all__ = ["CHECKS", "Outcome", "Skipped", "Verdict", "as_dict", "table"]

#: Every check and what it compares.
CHECKS: dict[str, str] = {
    "processes": "gradients of two processes with half the batch each, and of one with the whole",
    "micro_batch": "gradients of pieces computed twice, of pieces kept, and of the whole batch",
    "decoding": "stepping with a cache, the whole sentence at once, and the loss by hand",
    "resume": "a run that was stopped and gone on, and one that nothing stopped, bit for bit",
    "checkpoint": "what was saved, and what `velm.load` makes of the file, bit for bit",
}


class Skipped(Exception):
    """A check does not apply; the message says why."""


@dataclass(frozen=True)
class Verdict:
    """What a check found.

    Attributes:
        figure: the largest difference, relative to the largest value compared.
        fault: what is wrong, by name; None where nothing is.
        note: what else there is to know.
    """

    figure: float
    fault: str | None = None
    note: str = ""


@dataclass(frozen=True)
class Outcome:
    """What is told of a check.

    Attributes:
        name: in `CHECKS`.
        status: 'skipped' where it does not apply to the config.
        figure: the largest relative difference; None where nothing was compared.
        message: the fault, why it was skipped, or a note; empty where there is nothing to say.
        seconds: that it took.
    """

    name: str
    status: Literal["passed", "failed", "skipped"]
    figure: float | None
    message: str
    seconds: float


def as_dict(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """All of it as JSON can hold it: {'checks': [...], 'passed': bool}; a figure that is not finite is None."""
    checks = [asdict(outcome) for outcome in outcomes]
    for check in checks:
        if check["figure"] is not None and not check["figure"] < float("inf"):
            check["figure"] = None
    return {"checks": checks, "passed": all(outcome.status != "failed" for outcome in outcomes)}


def table(outcomes: Sequence[Outcome], width: int = 110) -> str:
    """A line a check, and one that sums them up."""
    lines = []
    for outcome in outcomes:
        figure = "-" if outcome.figure is None else f"{outcome.figure:.1e}"
        lines.append(f"{outcome.status:<8} {outcome.name:<12} {figure:>8} {outcome.seconds:7.1f} s")
        lines += textwrap.wrap(outcome.message, width, initial_indent=" " * 9, subsequent_indent=" " * 9)
    counts = {status: sum(o.status == status for o in outcomes) for status in ("passed", "failed", "skipped")}
    lines.append(f"\n{', '.join(f'{count} {status}' for status, count in counts.items())}.")
    return "\n".join(lines)
