"""Pieces of a batch against the batch; computed twice against kept."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from velm.doctor.laws.compare import ROUNDING, farthest, gradients, tell_rounding
from velm.doctor.laws.outcome import Verdict
from velm.doctor.laws.subject import Subject, fix_norms, settle, shake, trainer_of
from velm.outputs import Batch
from velm.training.distributed.gather import Gather
from velm.training.memory.micro_batch import micro_batch_losses
from velm.training.task import VisionLanguageTask

__all__ = ["check_micro_batch"]

PIECE = 3  # of 8: the last piece is a smaller one


def check_micro_batch(subject: Subject) -> Verdict:
    """Without dropout the gradient is the whole batch's; with dropout the second pass draws what the first drew."""
    batch = subject.batch
    with tempfile.TemporaryDirectory(prefix="velm-selfcheck-") as folder:
        task = subject.task().double()
        task.trainer = trainer_of(Path(folder))
        note = settle(task, batch)
        task.losses(task.model(batch, task.needs), batch)[0].backward()
        figure, where = farthest(gradients(task), _of_pieces(task, batch, keep=False))
        if figure > ROUNDING:
            return Verdict(figure, f"pieces differ from the whole batch, most for {where}.")
        task = subject.task().double()
        task.trainer = trainer_of(Path(folder))
        shake(task)
        fix_norms(task)
        drawn, where = farthest(_of_pieces(task, batch, keep=True), _of_pieces(task, batch, keep=False))
    if drawn > ROUNDING:
        return Verdict(
            drawn,
            f"random state not restored: with dropout, pieces that are computed twice differ from pieces that are "
            f"kept, most for {where}. The second pass drops other numbers than the first.",
        )
    figure = max(figure, drawn)
    return Verdict(figure, note=f"{tell_rounding(figure)} {note}".strip())


def _of_pieces(task: VisionLanguageTask, batch: Batch, *, keep: bool) -> dict[str, Tensor]:
    task.zero_grad()
    torch.manual_seed(0)
    micro_batch_losses(task.model, task.losses, batch, PIECE, Gather(task), keep_activations=keep)[0].backward()
    return gradients(task)
