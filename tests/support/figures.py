"""The figures of a run, as far as they are a matter of arithmetic."""

from __future__ import annotations

import csv
from pathlib import Path


def figures(file: Path) -> list[dict[str, str]]:
    """The rows of a metrics.csv without those of speed and their columns, {name: number} of what a row has."""
    with open(file, encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    found = [{k: v for k, v in row.items() if v and not k.startswith("speed/")} for row in rows]
    return [row for row in found if set(row) - {"epoch", "step"}]
