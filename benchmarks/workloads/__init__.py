"""The workloads: each module lists its own in `WORKLOADS`."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence

from benchmarks.harness.workload import Workload

__all__ = ["all_workloads", "chosen"]


def all_workloads() -> dict[str, Workload]:
    """All workloads by name, in the order of the module names."""
    modules = (importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__))
    return {workload.name: workload for module in modules for workload in getattr(module, "WORKLOADS", ())}


def chosen(names: Sequence[str]) -> list[Workload]:
    """The workloads with these names, or all if there are none; 'generate' also selects 'generate_beams'.

    Raises:
        ValueError: no workload has the name.
    """
    known = all_workloads()
    if not names:
        return list(known.values())
    found: dict[str, Workload] = {}
    for name in names:
        those = {n: w for n, w in known.items() if n == name or n.startswith(f"{name}_")}
        if not those:
            raise ValueError(f"There is no workload {name!r}; there are {', '.join(known)}.")
        found |= those
    return list(found.values())
