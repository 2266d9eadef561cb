"""A run folder as data: its config by dotted keys, its curves, how far and how long it trained."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from velm.errors import ComparisonError
from velm.report.curves import Points, read_curves
from velm.util import flat_options

__all__ = ["Run", "config_differences", "read_runs"]

FILES = ("config.yaml", "metrics.csv")
OWN = ("trainer.default_root_dir", "checkpoint_dir", "ckpt_path", "config", "resume")
"""Options that say where a run is and how it was started, and not what it learns."""


@dataclass(frozen=True)
class Run:
    """A run of `velm fit`.

    Attributes:
        name: the path without what the paths of all compared runs have in common.
        folder: of the run.
        config: by dotted keys, 'model.optimizer.lr'.
        curves: the columns of metrics.csv, (step, value).
        epochs: that have begun; None if metrics.csv does not say.
        steps: optimizer steps.
        seconds: of training and validation, parts before a resumption included; None if metrics.csv does not say.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    curves: Mapping[str, Points]
    epochs: int | None
    steps: int
    seconds: float | None


def read_runs(paths: Sequence[str]) -> list[Run]:
    """
    Args:
        paths: folders, at least two.

    Raises:
        ComparisonError: there are fewer than two, one is given twice or is no run, or no metric is in two of them.
    """
    folders = [Path(path) for path in paths]
    if len(folders) < 2:
        inside = _runs_in(folders[0]) if folders and folders[0].is_dir() and not _is_run(folders[0]) else []
        hint = f" Did you mean the runs in it: velm compare {folders[0]}/*?" if len(inside) > 1 else ""
        raise ComparisonError(f"A comparison needs at least two run folders; got {len(folders)}.{hint}")
    resolved = [folder.resolve() for folder in folders]
    for number, folder in enumerate(resolved):
        if folder in resolved[:number]:
            raise ComparisonError(f"{folders[number]} is given twice; name each run once.")
    top = Path(os.path.commonpath(resolved))
    names = [folder.relative_to(top).as_posix() for folder in resolved]
    names = [folder.name if name == "." else name for name, folder in zip(names, resolved, strict=True)]
    runs = [_read(folder, name) for folder, name in zip(folders, names, strict=True)]
    columns = [set(run.curves) for run in runs]
    if not any(first & second for number, first in enumerate(columns) for second in columns[:number]):
        listed = "; ".join(f"{run.name} has {', '.join(sorted(run.curves)[:6])}" for run in runs)
        raise ComparisonError(f"No metric is in two of these runs: {listed}. Compare runs with the same losses.")
    return runs


def config_differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """The value in each run of every option that is not the same in all; None where a run has no such option."""
    names = dict.fromkeys(name for run in runs for name in run.config)
    kept = [name for name in names if name not in OWN and not name.startswith("trainer.logger")]  # may hold a token
    values = {name: [run.config.get(name) for run in runs] for name in kept}
    return {name: row for name, row in values.items() if any(value != row[0] for value in row)}


def _read(folder: Path, name: str) -> Run:
    if not folder.is_dir():
        raise ComparisonError(f"There is no folder {folder}.")
    missing = [file for file in FILES if not (folder / file).is_file()]
    if missing:
        inside = _runs_in(folder)
        hint = f" The runs in it: velm compare {folder}/*" if inside else ""
        raise ComparisonError(f"{folder} is no run of `velm fit`: it has no {' and no '.join(missing)}.{hint}")
    try:
        config = yaml.safe_load((folder / FILES[0]).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ComparisonError(f"{folder / FILES[0]} cannot be read: {error}") from None
    curves = read_curves(folder / FILES[1])
    if not curves or not isinstance(config, dict):
        raise ComparisonError(f"{folder} has no metrics yet: {FILES[1]} has no rows. Let the run log its first step.")
    epochs = _column(folder / FILES[1], "epoch")
    steps = max(step for line in curves.values() for step, _ in line)
    elapsed = curves.get("speed/elapsed_s")
    return Run(
        name,
        folder,
        dict(flat_options(config)),
        curves,
        int(max(epochs)) + 1 if epochs else None,
        int(steps) + 1,
        max(value for _, value in elapsed) if elapsed else None,
    )


def _column(file: Path, name: str) -> list[float]:
    rows = csv.DictReader(file.read_text(encoding="utf-8").splitlines())
    return [float(row[name]) for row in rows if row.get(name)]


def _is_run(folder: Path) -> bool:
    return all((folder / file).is_file() for file in FILES)


def _runs_in(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.is_dir() and _is_run(path)]
