"""Sends the metrics of an evaluation to the loggers of the run that trained the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch.cli import instantiate_class

from velm.errors import ConfigError
from velm.training.tracking.run_loggers import run_loggers
from velm.util import describe_error

__all__ = ["log_evaluation", "loggers_of_run"]


def loggers_of_run(checkpoint: Path) -> list[Any]:
    """The loggers of `trainer.logger` in the config beside a checkpoint, guarded; each continues its run.

    Nothing is opened yet.

    Raises:
        ConfigError: there is no config beside the checkpoint, it names no logger, or a logger cannot be made.
    """
    checkpoint = checkpoint.expanduser()
    file = checkpoint.parent / "config.yaml"
    if not (checkpoint.is_file() and file.is_file()):
        raise ConfigError(
            f"--track sends metrics to the loggers of a run, and there is no {checkpoint if file.is_file() else file}: "
            f"name a checkpoint in the folder of its run, or leave --track out."
        )
    given = yaml.safe_load(file.read_text(encoding="utf-8")).get("trainer", {}).get("logger")
    listed = [each for each in (given if isinstance(given, list) else [given]) if isinstance(each, dict)]
    if not listed:
        raise ConfigError(
            f"--track sends metrics to the loggers of a run, and {file} has none in trainer.logger: train with one "
            f"(docs/tracking.md), or leave --track out."
        )
    try:
        made = [instantiate_class((), each) for each in listed]
    except Exception as error:  # of any logger: an option, a package that is missing
        raise ConfigError(f"A logger of {file} cannot be made: {describe_error(error).rstrip('.')}.") from error
    loggers = run_loggers(file.parent, made, keep=None)
    return loggers if isinstance(loggers, list) else []


def log_evaluation(
    loggers: Sequence[Any],
    checkpoint: Path,
    split: str,
    metrics: Mapping[str, float],
    intervals: Mapping[str, Sequence[float]],
) -> None:
    """Send `evaluation/<split>/<metric>`, and its interval as `.../low` and `.../high`, at the checkpoint's step.

    Args:
        loggers: of `loggers_of_run`.
        checkpoint: that was evaluated.
        split: its name.
        metrics: as in metrics.json.
        intervals: metric to (low, high), as in intervals.json.

    Raises:
        ConfigError: a logger refuses an option or a login.
    """
    step = int(torch.load(checkpoint.expanduser(), map_location="cpu", mmap=True, weights_only=True)["global_step"])
    sent = {f"evaluation/{split}/{name}": float(value) for name, value in metrics.items()}
    for name, (low, high) in intervals.items():
        sent |= {f"evaluation/{split}/{name}/low": float(low), f"evaluation/{split}/{name}/high": float(high)}
    for logger in loggers:
        logger.log_metrics(sent, step)
        logger.finalize("success")
