"""The results as results.json, a Markdown table and a plot."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.harness.shares import FLOOR
from benchmarks.harness.turns import CALM, Measured
from benchmarks.harness.workload import Agreement, Workload

__all__ = ["Outcome", "draw", "markdown", "results", "write"]


@dataclass
class Outcome:
    """The outcome of one workload.

    Attributes:
        workload: the workload.
        proof: that the systems do the same work.
        measured: results by system.
        shares: seconds of a step by kind of operation; empty if not profiled.
        failed: error message instead of results; None without an error.
    """

    workload: Workload
    proof: Sequence[Agreement] = ()
    measured: Mapping[str, Measured] = field(default_factory=dict)
    shares: Mapping[str, float] = field(default_factory=dict)
    failed: str | None = None

    def ratio(self, peer: str) -> float:
        """Speed relative to the peer: units per second of VELM over those of the peer."""
        ours, theirs = self.measured[self.workload.against[peer]].metrics(), self.measured[peer].metrics()
        return ours["per_s"] / theirs["per_s"]

    def memory_ratio(self, peer: str) -> float:
        """VELM's extra memory over the peer's; NaN if either is unknown or the peer has none."""
        ours, theirs = self.measured[self.workload.against[peer]].metrics(), self.measured[peer].metrics()
        return ours["extra_mb"] / theirs["extra_mb"] if theirs["extra_mb"] else math.nan


def results(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Workload -> system -> median_s, per_s, extra_mb and so on; and workload -> `ratio` -> peer."""
    found: dict[str, Any] = {}
    for outcome in outcomes:
        name = outcome.workload.name
        if outcome.failed is not None:
            found[name] = {"failed": outcome.failed}
            continue
        found[name] = {system: measured.metrics() for system, measured in outcome.measured.items()}
        found[name]["ratio"] = {peer: outcome.ratio(peer) for peer in outcome.workload.against}
        found[name]["memory_ratio"] = {peer: outcome.memory_ratio(peer) for peer in outcome.workload.against}
        found[name]["proof"] = [line._asdict() for line in outcome.proof]
        found[name]["shares_s"] = dict(outcome.shares)
    return found


def markdown(outcomes: Sequence[Outcome], machine: str) -> str:
    """One section per workload."""
    return "\n\n".join([f"# Benchmarks\n\n{machine}", *(_section(outcome) for outcome in outcomes)]) + "\n"


def _section(outcome: Outcome) -> str:
    workload = outcome.workload
    parts = [f"## {workload.name}\n\n{workload.title}"]
    if outcome.failed is not None:
        return "\n\n".join([*parts, f"Failed:\n\n```\n{outcome.failed}\n```"])
    rows = [f"| system | seconds | range | {workload.unit}/s | extra MB | VELM is | load |", "| --- " * 7 + "|"]
    for system, measured in outcome.measured.items():
        rows.append(_row(system, measured, outcome))
    parts.append("\n".join(rows))
    parts += [f"*{note}*" for note in workload.notes]
    if outcome.proof:
        lines = ["The same work:", ""]
        parts.append("\n".join([*lines, *(_agreed(line) for line in outcome.proof)]))
    if outcome.shares:
        parts.append(_share_table(outcome))
    return "\n\n".join(parts)


def _row(system: str, measured: Measured, outcome: Outcome) -> str:
    values = measured.metrics()
    against = system in outcome.workload.against
    ratio = f"{outcome.ratio(system):.2f} x as fast" if against else ""
    others, marks = values["others_cores"], f" ({measured.disturbed} disturbed)" if measured.disturbed else ""
    load = "unknown" if math.isnan(others) else f"{others:.2f}{marks}"
    return (
        f"| {system} | {values['median_s']:.3f} | {values['min_s']:.3f} to {values['max_s']:.3f} "
        f"| {values['per_s']:,.1f} | {values['extra_mb']:,.0f} | {ratio} | {load} |"
    )


def _agreed(line: Agreement) -> str:
    note = f" ({line.note})" if line.note else ""
    return f"- {line.what}: {_shown(line.ours)} and {_shown(line.theirs)}{note}"


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.9g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _share_table(outcome: Outcome) -> str:
    whole = sum(outcome.shares.values())
    rows = [f"| {name} | {seconds:.3f} | {seconds / whole:.0%} |" for name, seconds in outcome.shares.items()]
    floor, who = outcome.shares.get(FLOOR, 0.0) / whole, outcome.workload.profiled
    head = f"Where the time of {who} goes (torch.profiler; {floor:.0%} of it is the floor, {FLOOR}):"
    return "\n".join([head, "", "| | seconds | share |", "| --- | --- | --- |", *rows])


def draw(outcomes: Sequence[Outcome], path: Path) -> None:
    """One bar per peer: speed of VELM relative to it."""
    from matplotlib.figure import Figure

    bars = [
        (f"{outcome.workload.name}: {peer}", outcome.ratio(peer))
        for outcome in outcomes
        if outcome.failed is None
        for peer in outcome.workload.against
    ]
    if not bars:
        return
    figure = Figure(figsize=(8, 0.8 + 0.32 * len(bars)), layout="constrained")
    axes = figure.add_subplot()
    names, values = zip(*reversed(bars), strict=True)
    drawn = axes.barh(names, values, color=["#2a7f62" if value >= 1 else "#c0392b" for value in values])
    axes.bar_label(drawn, fmt="%.2f x", padding=3)
    axes.axvline(1, color="#444", linewidth=0.8)
    axes.set_xlabel("times as fast as the peer, on the same work")
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.12)
    figure.savefig(path, metadata={"Date": None})


def write(outcomes: Sequence[Outcome], folder: Path, machine: str) -> None:
    """Write results.json, results.md and results.svg into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results(outcomes), indent=2) + "\n", encoding="utf-8")
    (folder / "results.md").write_text(markdown(outcomes, machine), encoding="utf-8")
    draw(outcomes, folder / "results.svg")


def calm_note(outcomes: Sequence[Outcome]) -> str | None:
    """A line about disturbed measurements; None if there are none."""
    count = sum(measured.disturbed for outcome in outcomes for measured in outcome.measured.values())
    if not count:
        return None
    return f"{count} measurements were disturbed: other processes took more than {CALM} cores in each of three tries."
