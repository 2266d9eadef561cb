"""Two processes with half the batch each, by Lightning and DDP, against one pass over the whole batch."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
import torch
import torch.multiprocessing as mp
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torch import distributed as dist
from torch.multiprocessing.spawn import ProcessException
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from velm.doctor.laws.compare import ROUNDING, gap, gradients, tell_rounding
from velm.doctor.laws.faults import fault_of
from velm.doctor.laws.outcome import Skipped, Verdict
from velm.doctor.laws.subject import SAMPLES, Subject, quiet, settle, trainer_of
from velm.outputs import Batch
from velm.pretrained.weights import skip_pretrained
from velm.training.run import build_task
from velm.training.task import VisionLanguageTask

__all__ = ["ALL", "WORLD", "cases_of", "check_processes", "whole_gradients"]

WORLD = 2
ALL = "all losses"
PIECE = 3

Gradients = dict[str, Tensor]


def check_processes(subject: Subject) -> Verdict:
    """Compare every loss alone, and their weighted sum."""
    if not (dist.is_available() and dist.is_gloo_available()):
        raise Skipped("this torch has no gloo, by which processes on a CPU talk.")
    task = subject.task().double()
    note = settle(task, subject.batch)
    expected = whole_gradients(task, subject.batch)
    try:
        found = _of_processes(subject, task)
    except ProcessException as error:
        return Verdict(float("inf"), _told(error))
    figure = max(gap(expected[case], found[case]) for case in expected)
    fault = fault_of(task, subject.batch, expected, found) if figure > ROUNDING else None
    return Verdict(figure, fault, f"{tell_rounding(figure)} {note}".strip())


def cases_of(task: VisionLanguageTask) -> dict[str, dict[str, float]]:
    """Weights of the losses: as the config has them, and each loss alone where there are several."""
    weights = task.losses.weights
    alone = {name: {each: float(each == name) for each in weights} for name in weights}
    return {ALL: dict(weights), **(alone if len(weights) > 1 else {})}


def whole_gradients(task: VisionLanguageTask, batch: Batch) -> dict[str, Gradients]:
    """Of every case, by a plain forward and backward pass of this process."""
    found = {}
    before = task.losses.weights
    for case, weights in cases_of(task).items():
        task.losses.weights = weights
        task.zero_grad()
        task.losses(task.model(batch, task.needs), batch)[0].backward()
        found[case] = gradients(task)
    task.losses.weights = before
    task.zero_grad()
    return found


def _of_processes(subject: Subject, task: VisionLanguageTask) -> dict[str, Gradients]:
    """The same from an optimizer step a case of two processes, started once."""
    with tempfile.TemporaryDirectory(prefix="velm-selfcheck-") as name:
        folder = Path(name)
        job = {
            "model": subject.model, "vocabulary": subject.vocabulary, "state": task.state_dict(),
            "batch": subject.batch,
        }  # fmt: skip
        torch.save(job, folder / "job.pt")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # DDP remarks that it has looked for unused parameters
        mp.spawn(_worker, args=(port, str(folder)), nprocs=WORLD)
        found: dict[str, Gradients] = torch.load(folder / "found.pt", weights_only=True, mmap=True)
        return found


def _worker(rank: int, port: int, name: str) -> None:
    """One of the processes: its half of the batch, a step a case that moves no weight and keeps no moments."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank), "NODE_RANK": "0"}
    os.environ |= {"WORLD_SIZE": str(WORLD), "RANK": str(rank)}
    torch.set_num_threads(max(1, torch.get_num_threads() // WORLD))
    folder = Path(name)
    job: dict[str, Any] = torch.load(folder / "job.pt", weights_only=False)
    with quiet(), skip_pretrained():
        task = build_task(job["model"], **job["vocabulary"]).double()
        task.load_state_dict(job["state"])
        settle(task, job["batch"])
        task.ema = None
        task.configure_optimizers = lambda: torch.optim.SGD(task.parameters(), lr=0.0)  # type: ignore[method-assign]
        if task.micro_batch_size is not None:
            task.micro_batch_size = PIECE
        keep = _Keep(cases_of(task), rank)
        mine = job["batch"].micro_batches(SAMPLES // WORLD)[rank]
        strategy = DDPStrategy(process_group_backend="gloo", find_unused_parameters=True, gradient_as_bucket_view=True)
        trainer = trainer_of(folder, devices=WORLD, strategy=strategy, max_epochs=1, callbacks=[keep])
        trainer.fit(task, DataLoader(_Again(mine, len(keep.cases)), batch_size=None))
        if rank == 0:
            torch.save(keep.found, folder / "found.pt")


class _Again(TorchDataset):
    """The same batch, so many times."""

    def __init__(self, batch: Batch, times: int) -> None:
        self.batch, self.times = batch, times

    def __len__(self) -> int:
        return self.times

    def __getitem__(self, index: int) -> Batch:
        return self.batch


class _Keep(Callback):
    """Writes down what the optimizer would get, a case a step; the first process only: DDP gives all the same."""

    def __init__(self, cases: Mapping[str, dict[str, float]], rank: int) -> None:
        self.cases, self.rank = dict(cases), rank
        self.found: dict[str, Gradients] = {}
        self.case = ALL

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, VisionLanguageTask)
        self.case = list(self.cases)[batch_idx]
        pl_module.losses.weights = self.cases[self.case]

    def on_before_optimizer_step(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, optimizer: Any
    ) -> None:
        if self.rank == 0:
            self.found[self.case] = gradients(pl_module)


def _told(error: Exception) -> str:
    """What ended a process."""
    last = str(error).strip().splitlines()[-1]
    if "does not require grad" in last:
        return "gathered without gradient: no gradient of the loss comes back through the gathered embeddings."
    return f"a process failed: {last}"
