"""Skips optimizer steps whose loss or gradient is NaN or inf, saves their batches, and stops the run after many."""

from __future__ import annotations

import warnings
from dataclasses import fields
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, WeightAveraging
from torch import Tensor
from torch import distributed as dist

from velm import _compat
from velm.errors import NonFiniteError
from velm.outputs import Batch

__all__ = ["Averaging", "NonFiniteGuard"]

DUMPS = 5
"""Number of batches that a rank saves for inspection at most."""
FOLDER = "nonfinite"


class NonFiniteGuard(Callback):
    """Skips an optimizer step if its loss or gradient is not finite.

    The sum of the loss and the norm of the whole gradient, reduced over all ranks, decides for all of them. A skipped
    step changes neither the weights nor the optimizer state (AdamW without gradients neither decays nor moves), nor the
    weight average, nor the statistics of a batch norm; the schedule advances, as Lightning's does after a skipped step.
    On a GPU the decision waits once per step for the backward pass to end.

    Under `16-mixed` inf gradients are how the scaler finds its scale: the scaler skips those steps, and this callback
    checks the loss only.

    Args:
        folder: of the run; the first batches go to `nonfinite/step_<n>_rank_<r>.pt` in it.
        limit: number of skipped steps in a row that ends the run; None: no limit.

    Attributes:
        skipped: steps skipped so far.
        in_a_row: skipped steps since the last one that was not.
        skips_current: whether the current step is skipped.
    """

    def __init__(self, folder: Path, limit: int | None = 10) -> None:
        self.folder, self.limit = folder / FOLDER, limit
        self.skipped, self.in_a_row, self._dumped = 0, 0, 0
        self.skips_current = False
        self._loss: Tensor | None = None
        self._batch: Batch | None = None
        self._culprit: Batch | None = None
        self._statistics: list[tuple[Tensor, Tensor]] = []

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        norms = [module for module in pl_module.modules() if _compat.is_running_norm(module)]
        buffers = [buffer for norm in norms if norm.training for buffer in norm.buffers(recurse=False)]
        self._statistics = [(buffer, buffer.clone()) for buffer in buffers]

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        self.skips_current, self._batch = False, batch
        if self._loss is None:  # first micro-batch of an optimizer step
            for buffer, backup in self._statistics:
                backup.copy_(buffer)

    def on_before_backward(self, trainer: lightning.Trainer, pl_module: Any, loss: Tensor) -> None:
        loss = loss.detach().float()
        if trainer.accumulate_grad_batches > 1 and self._culprit is None and not torch.isfinite(loss):
            self._culprit = self._batch
        self._loss = loss if self._loss is None else self._loss + loss  # a sum with NaN or inf stays not finite

    def on_before_optimizer_step(self, trainer: lightning.Trainer, pl_module: Any, optimizer: Any) -> None:
        total, self._loss = self._loss, None
        if total is None:
            return
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        total = total.clone() if scaled or not gradients else total + _norm(gradients).to(total.device)
        if trainer.world_size > 1:
            dist.all_reduce(total)
        if torch.isfinite(total):
            self.in_a_row = 0
        else:
            self._skip_step(trainer, pl_module, optimizer)
        self._culprit = None

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """
        Raises:
            NonFiniteError: `limit` steps in a row were skipped.
        """
        self._batch = None
        pl_module.log("train/skipped_steps", float(self.skipped), batch_size=1)
        if self.skips_current and self.limit is not None and self.in_a_row >= self.limit:
            raise NonFiniteError(
                f"Loss or gradient was NaN or inf in {self.in_a_row} steps in a row, up to step {trainer.global_step}: "
                f"training cannot continue. The weights are those before the first of them. Their batches are in "
                f"{self.folder}: if they look right, lower model.optimizer.lr or trainer.gradient_clip_val, or set "
                f"trainer.precision=bf16-mixed instead of 16-mixed (or 32-true), and continue with --resume from an "
                f"earlier checkpoint. The limit is --max_nonfinite_steps."
            )

    def state_dict(self) -> dict[str, int]:
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.skipped, self.in_a_row = state["skipped"], state["in_a_row"]

    def _skip_step(self, trainer: lightning.Trainer, pl_module: Any, optimizer: Any) -> None:
        self.skips_current, self.skipped, self.in_a_row = True, self.skipped + 1, self.in_a_row + 1
        named = [(name, p.grad) for name, p in pl_module.named_parameters() if p.grad is not None]
        bad = [name for name, grad in named if not bool(torch.isfinite(_local(grad)).all())]
        for buffer, backup in self._statistics:
            buffer.copy_(backup)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
        file = self._dump(trainer, bad)
        warnings.warn(
            f"Step {trainer.global_step}: loss or gradient is NaN or inf (gradient of {len(bad)} of {len(named)} "
            f"parameters{', ' + bad[0] + ' first' if bad else ''}). The step is skipped, {self.in_a_row} in a row"
            f"{'' if self.limit is None else f' of at most {self.limit}'}, {self.skipped} in total."
            f"{'' if file is None else f' Its batch: {file}'}",
            stacklevel=2,
        )

    def _dump(self, trainer: lightning.Trainer, bad: list[str]) -> Path | None:
        batch = self._culprit or self._batch
        if self._dumped >= DUMPS or batch is None:
            return None
        self._dumped += 1
        tensors = {f.name: getattr(batch, f.name) for f in fields(batch) if isinstance(getattr(batch, f.name), Tensor)}
        content: dict[str, Any] = {name: value.detach().cpu() for name, value in tensors.items()}
        content |= {"step": trainer.global_step, "epoch": trainer.current_epoch, "nonfinite_gradients": bad}
        file = self.folder / f"step_{trainer.global_step}_rank_{trainer.global_rank}.pt"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            torch.save(content, file)
        except (OSError, RuntimeError) as error:  # a full disk must not end the run
            warnings.warn(f"{file} cannot be written ({error}).", stacklevel=2)
            return None
        return file


class Averaging(WeightAveraging):
    """Lightning's weight average, not updated by skipped steps."""

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        guards = [callback for callback in trainer.callbacks if isinstance(callback, NonFiniteGuard)]  # type: ignore[attr-defined]
        if not any(guard.skips_current for guard in guards):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)


def _norm(gradients: list[Tensor]) -> Tensor:
    """float (), the 2-norm over all gradients, sharded ones included."""
    norm = torch.nn.utils.get_total_norm(gradients)
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # FSDP2's DTensor


def _local(gradient: Tensor) -> Tensor:
    return gradient.to_local() if hasattr(gradient, "to_local") else gradient
