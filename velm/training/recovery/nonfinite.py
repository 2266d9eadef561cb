"""NaN and inf: the step is left out, counted, and its batch kept to be looked at; too many in a row end the run."""

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
"""Batches that a run keeps for inspection, at most, on each rank."""
FOLDER = "nonfinite"


class NonFiniteGuard(Callback):
    """Leaves an optimizer step out where loss or gradient is not finite.

    One number decides, the loss plus the norm of the whole gradient, summed over the ranks, so that all of them do the
    same. A step that is left out changes neither weights nor the optimizer's state (without gradients AdamW neither
    decays nor moves), nor the average of weights, nor a batch norm's statistics; the schedule goes on, as Lightning's
    does where a step is skipped. On a GPU the decision waits for the backward pass to end, once a step.

    Under `16-mixed` an inf gradient is how the scaler finds its scale: there it is the scaler that skips, and only the
    loss is looked at here.

    Args:
        folder: of the run; the first batches go to `nonfinite/step_<n>_rank_<r>.pt` in it.
        limit: steps in a row that end the run; None for no end.
    """

    def __init__(self, folder: Path, limit: int | None = 10) -> None:
        self.folder, self.limit = folder / FOLDER, limit
        self.skipped, self.in_a_row, self._dumped = 0, 0, 0
        self.left_out = False  # the step under way
        self._loss: Tensor | None = None
        self._batch: Batch | None = None
        self._culprit: Batch | None = None
        self._statistics: list[tuple[Tensor, Tensor]] = []

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        norms = [module for module in pl_module.modules() if _compat.is_running_norm(module)]
        buffers = [buffer for norm in norms if norm.training for buffer in norm.buffers(recurse=False)]
        self._statistics = [(buffer, buffer.clone()) for buffer in buffers]

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        self.left_out, self._batch = False, batch
        if self._loss is None:  # the first batch of an optimizer step
            for buffer, kept in self._statistics:
                kept.copy_(buffer)

    def on_before_backward(self, trainer: lightning.Trainer, pl_module: Any, loss: Tensor) -> None:
        loss = loss.detach().float()
        if trainer.accumulate_grad_batches > 1 and self._culprit is None and not torch.isfinite(loss):
            self._culprit = self._batch
        self._loss = loss if self._loss is None else self._loss + loss  # neither NaN nor inf goes away by adding

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
            self._leave_out(trainer, pl_module, optimizer)
        self._culprit = None

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """
        Raises:
            NonFiniteError: `limit` steps in a row were left out.
        """
        self._batch = None
        pl_module.log("train/skipped_steps", float(self.skipped), batch_size=1)
        if self.left_out and self.limit is not None and self.in_a_row >= self.limit:
            raise NonFiniteError(
                f"Loss or gradient was NaN or inf in {self.in_a_row} steps in a row, up to step {trainer.global_step}: "
                f"training cannot go on. The weights are those before the first of them. Their batches are in "
                f"{self.folder}: if these are sound, lower model.optimizer.lr or trainer.gradient_clip_val, or set "
                f"trainer.precision=bf16-mixed in place of 16-mixed (32-true to be sure), and go on with --resume from "
                f"an earlier checkpoint. The limit is --max_nonfinite_steps."
            )

    def state_dict(self) -> dict[str, int]:
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.skipped, self.in_a_row = state["skipped"], state["in_a_row"]

    def _leave_out(self, trainer: lightning.Trainer, pl_module: Any, optimizer: Any) -> None:
        self.left_out, self.skipped, self.in_a_row = True, self.skipped + 1, self.in_a_row + 1
        named = [(name, p.grad) for name, p in pl_module.named_parameters() if p.grad is not None]
        bad = [name for name, grad in named if not bool(torch.isfinite(_local(grad)).all())]
        for buffer, kept in self._statistics:
            buffer.copy_(kept)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
        file = self._dump(trainer, bad)
        warnings.warn(
            f"Step {trainer.global_step}: loss or gradient is NaN or inf (gradient of {len(bad)} of {len(named)} "
            f"parameters{', ' + bad[0] + ' first' if bad else ''}). The step is left out, {self.in_a_row} in a row"
            f"{'' if self.limit is None else f' of at most {self.limit}'}, {self.skipped} in all."
            f"{'' if file is None else f' Its batch: {file}'}",
            stacklevel=2,
        )

    def _dump(self, trainer: lightning.Trainer, bad: list[str]) -> Path | None:
        batch = self._culprit or self._batch
        if self._dumped >= DUMPS or batch is None:
            return None
        self._dumped += 1
        tensors = {f.name: getattr(batch, f.name) for f in fields(batch) if isinstance(getattr(batch, f.name), Tensor)}
        kept: dict[str, Any] = {name: value.detach().cpu() for name, value in tensors.items()}
        kept |= {"step": trainer.global_step, "epoch": trainer.current_epoch, "nonfinite_gradients": bad}
        file = self.folder / f"step_{trainer.global_step}_rank_{trainer.global_rank}.pt"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            torch.save(kept, file)
        except (OSError, RuntimeError) as error:  # disk full: no reason to end
            warnings.warn(f"{file} cannot be written ({error}).", stacklevel=2)
            return None
        return file


class Averaging(WeightAveraging):
    """Lightning's average of weights, which a step that was left out does not move."""

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        guards = [callback for callback in trainer.callbacks if isinstance(callback, NonFiniteGuard)]  # type: ignore[attr-defined]
        if not any(guard.left_out for guard in guards):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)


def _norm(gradients: list[Tensor]) -> Tensor:
    """float (), of all of them together, sharded ones included."""
    norm = torch.nn.utils.get_total_norm(gradients)
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # FSDP2's DTensor


def _local(gradient: Tensor) -> Tensor:
    return gradient.to_local() if hasattr(gradient, "to_local") else gradient
