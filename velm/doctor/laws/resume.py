"""A run that was stopped in the middle and gone on, against one that nothing stopped."""

from __future__ import annotations

import hashlib
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor

from velm.doctor.laws.compare import farthest
from velm.doctor.laws.outcome import Skipped, Verdict
from velm.doctor.laws.subject import Subject, shake, trainer_of
from velm.outputs import Batch
from velm.training.task import VisionLanguageTask

__all__ = ["check_resume"]

STEPS = 3  # of an epoch; two epochs, stopped in the second
ELSEWHERE = 20_261  # the seed of a process in which other things went on


def check_resume(subject: Subject) -> Verdict:
    """The losses of the steps behind the stop, and the weights at the end."""
    with tempfile.TemporaryDirectory(prefix="velm-selfcheck-") as name:
        folder = Path(name)
        plan = _Plan.of(subject)
        whole = _run(subject, plan, folder)
        file = folder / "middle.ckpt"
        if not file.is_file():
            return Verdict(math.inf, f"no checkpoint was written after {plan.stop} of {plan.steps} steps.")
        torch.manual_seed(ELSEWHERE)
        resumed = _run(subject, plan, folder, file)
    return _judged(whole, resumed)


@dataclass(frozen=True)
class _Plan:
    """Batches of an epoch, epochs, batches accumulated, and the optimizer step after which the run stops."""

    batches: int
    epochs: int
    accumulate: int
    steps: int
    stop: int

    @classmethod
    def of(cls, subject: Subject) -> _Plan:
        there = len(subject.run_data().train_dataloader())
        if there == 0:
            raise Skipped("the training split does not fill a batch of two images.")
        accumulate = min(subject.config["trainer"]["accumulate_grad_batches"] or 1, 2)
        batches = min(STEPS * accumulate, there)
        an_epoch = math.ceil(batches / accumulate)
        epochs = 2 if an_epoch > 1 else 2 * STEPS
        return cls(batches, epochs, accumulate, epochs * an_epoch, epochs * an_epoch * 2 // 3)


class _Watch(Callback):
    """Of every batch: what it was, what was drawn, the loss."""

    def __init__(self) -> None:
        self.batches: list[str] = []
        self.drawn: list[str] = []
        self.losses: list[Tensor] = []

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        tensors = (batch.image_ids, batch.images, batch.tokens, batch.target_tokens)
        self.batches.append(_print(*(tensor for tensor in tensors if tensor is not None)))

    def on_before_backward(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, loss: Tensor
    ) -> None:
        self.drawn.append(_print(torch.get_rng_state()))
        self.losses.append(loss.detach().clone())


@dataclass(frozen=True)
class _Ran:
    watch: _Watch
    state: dict[str, Tensor]
    optimizer: dict[str, Tensor]


def _run(subject: Subject, plan: _Plan, folder: Path, checkpoint: Path | None = None) -> _Ran:
    """A run of the config, from its beginning or from a checkpoint."""
    task, watch = subject.task(), _Watch()
    shake(task)
    callbacks: list[Callback] = [watch]
    if checkpoint is None:
        callbacks.append(ModelCheckpoint(folder, "middle", every_n_train_steps=plan.stop, save_top_k=-1))
    options = {name: subject.config["trainer"][name] for name in ("gradient_clip_val", "gradient_clip_algorithm")}
    trainer = trainer_of(
        folder, callbacks=callbacks, max_epochs=plan.epochs, limit_train_batches=plan.batches,
        accumulate_grad_batches=plan.accumulate, enable_checkpointing=checkpoint is None, **options,
    )  # fmt: skip
    trainer.fit(task, datamodule=subject.run_data(), ckpt_path=checkpoint, weights_only=True)
    return _Ran(watch, {n: v.clone() for n, v in task.state_dict().items()}, _moments(task, trainer))


def _moments(task: VisionLanguageTask, trainer: lightning.Trainer) -> dict[str, Tensor]:
    """What the optimizer remembers, by parameter."""
    names = {id(parameter): name for name, parameter in task.named_parameters()}
    return {
        f"{key} of {names[id(parameter)]}": value
        for optimizer in trainer.optimizers
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def _judged(whole: _Ran, resumed: _Ran) -> Verdict:
    count = len(resumed.watch.losses)
    at = len(whole.watch.losses) - count
    losses = {f"loss {i}": value for i, value in enumerate(whole.watch.losses[at:] if at >= 0 else [])}
    again = {f"loss {i}": value for i, value in enumerate(resumed.watch.losses)}
    pairs: list[tuple[str, Any, Any]] = [
        ("losses", losses, again), ("weights", whole.state, resumed.state),
        ("moments of the optimizer", whole.optimizer, resumed.optimizer),
    ]  # fmt: skip
    figure = max(farthest(one, other)[0] for _, one, other in pairs)
    if figure == 0.0:
        return Verdict(0.0)
    return Verdict(figure, _fault(whole.watch, resumed.watch, at, pairs))


def _fault(whole: _Watch, resumed: _Watch, at: int, pairs: list[tuple[str, Any, Any]]) -> str:
    """What was not brought back: the first thing that differs behind the stop."""
    if at <= 0 or not resumed.losses:
        return f"the place: {len(resumed.losses)} batches after the stop, of {len(whole.losses)} in all."
    for number, batch in enumerate(resumed.batches):
        if batch != whole.batches[at + number]:
            return f"the place in the data is not restored: batch {at + number} of the resumed run is another."
    first = next((i for i, loss in enumerate(resumed.losses) if not torch.equal(loss, whole.losses[at + i])), None)
    if first is not None and resumed.drawn[first] != whole.drawn[at + first]:
        return f"random state not restored: batch {at + first} is the same, and what dropout draws is not."
    if first == 0:
        return "weights not restored: the first loss behind the stop differs, on the same batch."
    if first is not None:
        return f"the optimizer or its schedule is not restored: from batch {at + first} on the loss differs."
    name, one, other = next((name, one, other) for name, one, other in pairs if farthest(one, other)[0] > 0)
    return f"the {name} at the end differ, most for {farthest(one, other)[1]}; the losses do not."


def _print(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(repr(tuple(tensor.shape)).encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
