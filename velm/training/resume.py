"""What makes a run that was stopped go on as if nothing had happened.

Nothing random is carried along: order, crops and captions are functions of (seed, epoch, sample), dropout of (seed,
epoch, step, rank). A checkpoint holds the weights, the optimizer and the place in the epoch; the rest follows.
"""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException

from velm.data.faults import BadDataError

__all__ = ["TERMINATED", "Resume", "run_seed", "seed_step"]

TERMINATED = 143
"""Exit code of a run that was told to stop: 128 + SIGTERM, as a shell has it."""


def run_seed() -> int:
    """The run's `seed_everything`, or 0."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0))


def seed_step(epoch: int, step: int, rank: int) -> None:
    """Seed torch's generators (dropout) for one step of one process; `step` is its place in the epoch."""
    seed = np.random.SeedSequence((run_seed(), epoch, step, rank)).generate_state(1, np.uint64)
    torch.manual_seed(int(seed[0] >> np.uint64(1)))


class Resume(Callback):
    """Keeps the run's folder fit to go on from: figures as old as the weights, and a checkpoint when told to stop.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Forget the figures of steps that were lost with a run that was killed: they come again."""
        if trainer.ckpt_path is not None and trainer.is_global_zero:
            for logger in _csv_loggers(trainer):
                _forget(Path(logger.log_dir) / "metrics.csv", trainer.global_step)

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """What was logged up to a checkpoint is on the disk when the checkpoint is."""
        for logger in _csv_loggers(trainer):
            logger.save()

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """SIGTERM (preemption): Lightning ends the step that is under way; this saves it. So for too much bad data."""
        if isinstance(exception, SIGTERMException | BadDataError) and trainer.training:
            trainer.save_checkpoint(self.folder / "last.ckpt")


def _csv_loggers(trainer: lightning.Trainer) -> list[CSVLogger]:
    return [logger for logger in trainer.loggers if isinstance(logger, CSVLogger)]


def _forget(file: Path, step: int) -> None:
    """Drop the rows of `step` and later ones."""
    if not file.is_file():
        return
    with file.open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        columns, rows = reader.fieldnames or [], list(reader)
    kept = [row for row in rows if not row.get("step") or int(float(row["step"])) < step]
    if len(kept) == len(rows):
        return
    half_written = file.with_suffix(".csv.part")
    with half_written.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        writer.writerows(kept)
    half_written.replace(file)
