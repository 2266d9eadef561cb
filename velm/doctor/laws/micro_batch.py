"""Gradients of micro-batches against those of the whole batch, and micro-batches computed twice against kept ones."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from velm.doctor.laws.compare import ROUNDING, failed, farthest, gradients, passed
from velm.doctor.laws.small_run import SmallRun, disable_randomness, force_dropout, freeze_batch_norm, trainer_of
from velm.findings import Finding
from velm.outputs import Batch
from velm.training.distributed.gather import Gather
from velm.training.memory.micro_batch import micro_batch_losses
from velm.training.task import VisionLanguageTask

SIZE = 3  # samples of a micro-batch; of 8, so that the last one is smaller


def check_micro_batch(run: SmallRun) -> Finding:
    """Without dropout the gradient is that of the whole batch; with dropout the second pass draws the same numbers."""
    batch = run.batch
    with tempfile.TemporaryDirectory(prefix="velm-selfcheck-") as folder:
        task = run.task().double()
        task.trainer = trainer_of(Path(folder))
        note = disable_randomness(task, batch)
        task.losses(task.model(batch, task.needs), batch)[0].backward()
        whole = gradients(task)
        without, where = farthest(whole, _of_micro_batches(task, batch, keep=False))
        if without > ROUNDING:
            return failed(
                "micro_batch",
                without,
                f"The gradient of micro-batches differs from that of the whole batch by {without:.1e} of its largest "
                f"value, most for {where}.",
            )
        task = run.task().double()
        task.trainer = trainer_of(Path(folder))
        force_dropout(task)
        freeze_batch_norm(task)
        kept = _of_micro_batches(task, batch, keep=True)
        twice, where = farthest(kept, _of_micro_batches(task, batch, keep=False))
    if twice > ROUNDING:
        return failed(
            "micro_batch",
            twice,
            f"With dropout, the gradient of micro-batches that are computed twice differs from that of micro-batches "
            f"whose activations are kept by {twice:.1e} of its largest value, most for {where}.",
        )
    return passed("micro_batch", max(without, twice), note)


def _of_micro_batches(task: VisionLanguageTask, batch: Batch, *, keep: bool) -> dict[str, Tensor]:
    task.zero_grad()
    torch.manual_seed(0)
    micro_batch_losses(task.model, task.losses, batch, SIZE, Gather(task, batch), keep_activations=keep)[0].backward()
    return gradients(task)
