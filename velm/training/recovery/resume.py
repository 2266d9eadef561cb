"""What makes a run that was stopped go on as if nothing had happened.

Nothing random is carried along: order, crops and captions are functions of (seed, epoch, sample), dropout of (seed,
epoch, step, rank). A checkpoint holds the weights, the optimizer and the place in the epoch; the rest follows.
"""

from __future__ import annotations

import csv
import os
import signal
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import distributed as dist

from velm import _compat
from velm.errors import BadDataError, ConfigError, NonFiniteError, WorkerDiedError
from velm.training.recovery.checkpoint_io import LAST, Checkpoints, join

__all__ = ["TERMINATED", "Resume", "Terminate", "run_seed", "seed_step", "slurm"]

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
        checkpoints: the folder or the URL of the run's checkpoints.
        kept: the folder holds what is left of this very run, also where there is no checkpoint of it yet.
    """

    def __init__(self, checkpoints: str, kept: bool = False) -> None:
        self.last, self.kept = join(checkpoints, LAST), kept

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """
        Raises:
            ConfigError: the ranks do not see the same checkpoint.
        """
        here = str(trainer.ckpt_path or "nothing")
        there = trainer.strategy.broadcast(here)
        if here != there:
            raise ConfigError(
                f"Rank {trainer.global_rank} would go on from {here}, rank 0 from {there}: the machines do not share "
                f"the run's folder. Put it on a disk that all of them see, or give --checkpoint_dir a URL."
            )

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Forget the figures of steps that were lost with a run that was killed: they come again."""
        if (trainer.ckpt_path is not None or self.kept) and trainer.is_global_zero:
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
        """Save the finished steps where the run ends between two of them: SIGTERM, bad data, NaN, dead workers.

        The first three end all ranks after the same step; a loader is one rank's own, so that there it takes a run of
        one process.
        """
        together = isinstance(exception, SIGTERMException | BadDataError | NonFiniteError)
        alone = isinstance(exception, WorkerDiedError) and trainer.world_size == 1
        if (together or alone) and trainer.training:
            trainer.save_checkpoint(self.last)
            writer = trainer.strategy.checkpoint_io
            saved = not isinstance(writer, Checkpoints) or writer.has(self.last)
            exception.saved = self.last if saved else None  # type: ignore[attr-defined]


class Terminate(Callback):
    """SIGTERM to any of several ranks ends all of them after the same step.

    Lightning's handler runs a collective from within the signal, wherever the process happens to be: where the ranks
    are told at different moments they wait for each other for ever. Here a signal only leaves a mark, and the ranks
    compare marks after every step.
    """

    def __init__(self) -> None:
        self.told = False
        self._previous: Any = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if trainer.world_size > 1:
            self._previous = signal.signal(signal.SIGTERM, self._mark)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.world_size == 1:
            return
        mark = torch.tensor(float(self.told), device=pl_module.device)
        dist.all_reduce(mark)
        if mark:
            _compat.request_stop(trainer)  # Lightning ends the run when the step is logged

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
            self._previous = None

    def _mark(self, number: int, frame: Any) -> None:
        self.told = True


def slurm() -> list[SLURMEnvironment]:
    """SLURM without Lightning's requeue, whose hpc_ckpt files outlive newer checkpoints; SIGTERM is ours."""
    ours = SLURMEnvironment.detect() and not TorchElasticEnvironment.detect()
    return [SLURMEnvironment(auto_requeue=False)] if ours else []


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
