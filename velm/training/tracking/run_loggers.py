"""The loggers of a run: those of the config and, beside them, VELM's files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger

from velm.training.monitor.loggers import EventLogger, ResumableCSVLogger
from velm.training.tracking.callback import continue_runs
from velm.training.tracking.guard import guard

__all__ = ["run_loggers"]


def run_loggers(folder: Path, given: Any, keep: bool | None) -> list[Logger] | bool:
    """The loggers of `trainer.logger`, guarded, and VELM's files, which resuming and the report need.

    The user's come first, so that `trainer.logger` is the first of them. A `TensorBoardLogger` replaces VELM's events.

    Args:
        folder: of the run.
        given: a logger, a list of them, True or None (VELM's alone) or False (none).
        keep: whether a fit continues the run in the folder; None: no fit, which has the user's loggers only.
    """
    if given is False:
        return False
    listed = list(given) if isinstance(given, list | tuple) else [given]
    loggers = [guard(logger) for logger in listed if logger not in (None, True)]
    if keep is not False:
        continue_runs(folder, loggers)
    if keep is None:
        return loggers or False
    own: list[Logger] = [ResumableCSVLogger(folder)]
    if not any(isinstance(logger, TensorBoardLogger) for logger in loggers):
        own.append(EventLogger(folder.parent, name=folder.name, version=""))
    return [*loggers, *own]
