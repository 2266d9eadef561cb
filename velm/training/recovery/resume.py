"""Exact resume: a run that was stopped continues bit for bit as if it had not been.

No random state is saved. Order, crops and captions are functions of (seed, epoch, sample), dropout of (seed, epoch,
step, rank). A checkpoint holds the weights, the optimizer state and the number of batches done in the epoch.
"""

from __future__ import annotations

import csv
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import distributed as dist

from velm import _compat
from velm.errors import BadDataError, ConfigError, NonFiniteError, RunFailedError, TerminatedError, WorkerDiedError
from velm.training.recovery.checkpoint_io import LAST, Checkpoints, join
from velm.training.recovery.ranks import RankWatch
from velm.util import write_atomically

__all__ = ["Resume", "StopAllRanks", "explain_failure", "run_seed", "seed_step", "slurm_environments"]


def run_seed() -> int:
    """The run's `seed_everything`; 0 if it is not set."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0))


def seed_step(epoch: int, step: int, rank: int) -> None:
    """Seed torch's generators (dropout) for one step of one rank; `step` is the index of the batch in the epoch."""
    seed = np.random.SeedSequence((run_seed(), epoch, step, rank)).generate_state(1, np.uint64)
    torch.manual_seed(int(seed[0] >> np.uint64(1)))


class Resume(Callback):
    """Keeps metrics.csv consistent with the checkpoint, and saves the finished steps of a run that is stopped.

    Args:
        checkpoints: folder or URL of the run's checkpoints.
        same_run: what the folder holds is an earlier part of this run, even if it has no checkpoint yet.

    Attributes:
        saved: the checkpoint that was written when the run was stopped; None if it was not.
    """

    def __init__(self, checkpoints: str, same_run: bool = False) -> None:
        self.last, self.same_run = join(checkpoints, LAST), same_run
        self.saved: str | None = None

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """
        Raises:
            ConfigError: the ranks do not see the same checkpoint.
        """
        here = str(trainer.ckpt_path or "nothing")
        there = trainer.strategy.broadcast(here)
        if here != there:
            raise ConfigError(
                f"Rank {trainer.global_rank} would resume from {here}, rank 0 from {there}: the machines do not share "
                f"the run folder. Put it on a disk that all of them see, or give --checkpoint_dir a URL."
            )

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Drop the metrics of steps after the checkpoint: a killed run had logged them, and they are done again."""
        if (trainer.ckpt_path is not None or self.same_run) and trainer.is_global_zero:
            for logger in _csv_loggers(trainer):
                _drop_rows(Path(logger.log_dir) / "metrics.csv", trainer.global_step)

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Write the metrics of every step that the checkpoint contains."""
        for logger in _csv_loggers(trainer):
            logger.save()

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Save the finished steps if the run ends between two of them: SIGTERM, bad data, NaN, dead workers.

        The first three end all ranks after the same step. Loader workers belong to one rank, so after their death only
        a run of one rank can save.
        """
        all_ranks = isinstance(exception, SIGTERMException | BadDataError | NonFiniteError)
        only_rank = isinstance(exception, WorkerDiedError) and trainer.world_size == 1
        if (all_ranks or only_rank) and trainer.training:
            trainer.save_checkpoint(self.last)
            writer = trainer.strategy.checkpoint_io
            self.saved = self.last if not isinstance(writer, Checkpoints) or writer.is_saved(self.last) else None


def explain_failure(error: BaseException, trainer: lightning.Trainer | None) -> RunFailedError | None:
    """The error to raise in place of `error`, with what the callbacks know about it; None: `error` says it all.

    Args:
        error: what ended the run.
        trainer: of the run; None if it failed before there was one.
    """
    callbacks = [] if trainer is None else trainer.callbacks  # type: ignore[attr-defined]
    saved = next((callback.saved for callback in callbacks if isinstance(callback, Resume)), None)
    cause = next((callback.cause for callback in callbacks if isinstance(callback, RankWatch)), None)
    if isinstance(error, SIGTERMException):
        done = f"the current step was finished and saved. Continue: --resume, or --ckpt_path {saved}"
        lost = "nothing was saved since the last checkpoint. Continue from it: --resume"
        return TerminatedError(f"Stopped by SIGTERM: {lost if saved is None else done}", saved)
    if isinstance(error, WorkerDiedError):
        where = "" if saved is None else f"The finished steps are in {saved}. "
        return WorkerDiedError(f"{error} {where}Continue: --resume", saved)
    return None if cause is None else RunFailedError(cause)


class StopAllRanks(Callback):
    """After SIGTERM to any rank, all ranks stop after the same step.

    Lightning's handler runs a collective inside the signal handler, wherever the process happens to be: ranks that get
    the signal at different times wait for each other forever. Here the handler sets a flag, and the ranks sum their
    flags after every step.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: Any = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if trainer.world_size > 1:
            self._previous = signal.signal(signal.SIGTERM, self._request)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.world_size == 1:
            return
        requested = torch.tensor(float(self.requested), device=pl_module.device)
        dist.all_reduce(requested)
        if requested:
            _compat.request_stop(trainer)  # Lightning ends the run when the step is logged

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
            self._previous = None

    def _request(self, number: int, frame: Any) -> None:
        self.requested = True


def slurm_environments(plugins: Sequence[Any] = ()) -> list[ClusterEnvironment]:
    """The plugin that tells Lightning how the processes of a run under SLURM were started.

    In a step of srun, SLURM's environment without Lightning's requeue, whose hpc_ckpt files outlive newer checkpoints.
    In a shell or notebook inside an allocation, SLURM_NTASKS counts tasks that nobody has started: the run is that one
    process, and starts those of its other devices itself.

    Args:
        plugins: the user's; a `ClusterEnvironment` among them decides.
    """
    if any(isinstance(plugin, ClusterEnvironment) for plugin in plugins):
        return []
    if not SLURMEnvironment.detect() or TorchElasticEnvironment.detect():
        return []
    tasks = int(os.environ.get("SLURM_NTASKS", 1))
    in_step = "SLURM_STEP_ID" in os.environ and "SLURM_PTY_PORT" not in os.environ
    if tasks > 1 and not in_step:
        return [LightningEnvironment()]
    return [SLURMEnvironment(auto_requeue=False)]


def _csv_loggers(trainer: lightning.Trainer) -> list[CSVLogger]:
    return [logger for logger in trainer.loggers if isinstance(logger, CSVLogger)]


def _drop_rows(file: Path, step: int) -> None:
    """Delete the rows of `step` and later ones from a metrics.csv."""
    if not file.is_file():
        return
    with file.open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        columns, rows = reader.fieldnames or [], list(reader)
    earlier = [row for row in rows if not row.get("step") or int(float(row["step"])) < step]
    if len(earlier) < len(rows):
        with write_atomically(file) as partial, partial.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, columns)
            writer.writeheader()
            writer.writerows(earlier)
