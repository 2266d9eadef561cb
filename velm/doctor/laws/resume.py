"""A run that was stopped and resumed against one that was not: batches, random state, losses, weights, moments."""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor

from velm.doctor.laws.compare import failed, farthest, passed
from velm.doctor.laws.small_run import SmallRun, force_dropout, trainer_of
from velm.findings import Finding
from velm.outputs import Batch
from velm.training.task import VisionLanguageTask

STEPS = 3  # optimizer steps per epoch; two epochs, stopped in the second
OTHER_SEED = 20_261  # the random state of the process that resumes


def check_resume(run: SmallRun) -> Finding:
    """Every step after the stop, and the weights and moments at the end, are the same."""
    available = len(run.run_data().train_dataloader())
    if available == 0:
        return Finding("resume", "skipped", "The training split does not fill a batch of two images.")
    schedule = _Schedule.of(run, available)
    with tempfile.TemporaryDirectory(prefix="velm-selfcheck-") as name:
        folder = Path(name)
        uninterrupted = _train(run, schedule, folder)
        file = folder / "middle.ckpt"
        if not file.is_file():
            message = f"No checkpoint was written after {schedule.stop} of {schedule.steps} steps."
            return failed("resume", math.inf, message)
        torch.manual_seed(OTHER_SEED)
        resumed = _train(run, schedule, folder, file)
    return _compare(uninterrupted, resumed)


@dataclass(frozen=True)
class _Schedule:
    """Batches per epoch, epochs, batches per step, steps in total, and the step after which the run stops."""

    batches: int
    epochs: int
    accumulate: int
    steps: int
    stop: int

    @classmethod
    def of(cls, run: SmallRun, available: int) -> _Schedule:
        accumulate = min(run.config["trainer"]["accumulate_grad_batches"] or 1, 2)
        batches = min(STEPS * accumulate, available)
        steps = math.ceil(batches / accumulate)
        epochs = 2 if steps > 1 else 2 * STEPS
        return cls(batches, epochs, accumulate, epochs * steps, epochs * steps * 2 // 3)


@dataclass(eq=False)
class _Trace(Callback):
    """What happened in a run.

    Attributes:
        batches: fingerprint of every batch.
        random_states: fingerprint of the random state after every forward pass.
        losses: float () of every batch.
        weights: at the end, by name.
        moments: of the optimizer at the end, by name.
    """

    batches: list[str] = field(default_factory=list)
    random_states: list[str] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    moments: Mapping[str, Tensor] = field(default_factory=dict)

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        tensors = (batch.image_ids, batch.images, batch.tokens, batch.target_tokens)
        self.batches.append(_fingerprint(*(tensor for tensor in tensors if tensor is not None)))

    def on_before_backward(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, loss: Tensor
    ) -> None:
        self.random_states.append(_fingerprint(torch.get_rng_state()))
        self.losses.append(loss.detach().clone())


def _train(run: SmallRun, schedule: _Schedule, folder: Path, checkpoint: Path | None = None) -> _Trace:
    """A run of the config from its start, which writes middle.ckpt, or from a checkpoint."""
    task, trace = run.task(), _Trace()
    force_dropout(task)
    callbacks: list[Callback] = [trace]
    if checkpoint is None:
        callbacks.append(ModelCheckpoint(folder, "middle", every_n_train_steps=schedule.stop, save_top_k=-1))
    options = {name: run.config["trainer"][name] for name in ("gradient_clip_val", "gradient_clip_algorithm")}
    trainer = trainer_of(
        folder, callbacks=callbacks, max_epochs=schedule.epochs, limit_train_batches=schedule.batches,
        accumulate_grad_batches=schedule.accumulate, enable_checkpointing=checkpoint is None, **options,
    )  # fmt: skip
    trainer.fit(task, datamodule=run.run_data(), ckpt_path=checkpoint, weights_only=True)
    task.zero_grad()
    trace.weights, trace.moments = task.state_dict(), _moments(task, trainer)
    return trace


def _moments(task: VisionLanguageTask, trainer: lightning.Trainer) -> dict[str, Tensor]:
    """The optimizer's state by parameter."""
    names = {id(parameter): name for name, parameter in task.named_parameters()}
    return {
        f"{key} of {names[id(parameter)]}": value
        for optimizer in trainer.optimizers
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def _compare(uninterrupted: _Trace, resumed: _Trace) -> Finding:
    """The first difference after the stop; then weights and moments at the end."""
    start = len(uninterrupted.losses) - len(resumed.losses)
    if start <= 0 or not resumed.losses:
        message = f"{len(resumed.losses)} batches after the stop, of {len(uninterrupted.losses)} in total."
        return failed("resume", math.inf, message)
    losses = {f"batch {i}": loss for i, loss in enumerate(uninterrupted.losses) if i >= start}
    losses_again = {f"batch {start + i}": loss for i, loss in enumerate(resumed.losses)}
    differences = {
        "loss": farthest(losses, losses_again),
        "weights": farthest(uninterrupted.weights, resumed.weights),
        "optimizer": farthest(uninterrupted.moments, resumed.moments),
    }
    worst = max(difference for difference, _ in differences.values())
    parts = [_first_difference(title, start, before, after) for title, before, after in (
        ("data", uninterrupted.batches, resumed.batches),
        ("random state", uninterrupted.random_states, resumed.random_states),
        ("loss", [str(float(loss)) for loss in uninterrupted.losses], [str(float(loss)) for loss in resumed.losses]),
    )]  # fmt: skip
    parts += [f"{title} by {gap:.1e}, most for {where}" for title, (gap, where) in differences.items() if gap > 0]
    different = [part for part in parts if part is not None]
    if not different:
        return passed("resume", worst)
    return failed("resume", worst, f"The resumed run differs from the uninterrupted one: {'; '.join(different)}.")


def _first_difference(title: str, start: int, before: list[str], after: list[str]) -> str | None:
    """Where two lists first differ; `after` begins at batch `start`."""
    pairs = zip(before[start:], after, strict=True)
    first = next((start + i for i, (one, other) in enumerate(pairs) if one != other), None)
    return None if first is None else f"{title} from batch {first} on"


def _fingerprint(*tensors: Tensor) -> str:
    """SHA-256 of shapes and values."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(repr(tuple(tensor.shape)).encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
