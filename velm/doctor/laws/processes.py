"""Gradients of two processes with half the batch each, through Lightning and DDP, against one pass over the batch.

Gradients of every case are kept in files, so that a model needs memory for one set of gradients per process.
"""

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

from velm.doctor.laws.compare import ROUNDING, failed, farthest, gradients, passed
from velm.doctor.laws.small_run import SAMPLES, SmallRun, disable_randomness, quiet, trainer_of
from velm.findings import Finding
from velm.outputs import Batch
from velm.pretrained.weights import skip_pretrained
from velm.training.build import build_task
from velm.training.task import VisionLanguageTask

WORLD = 2
ALL = "all losses"
MICRO_BATCH = 3


def check_processes(run: SmallRun) -> Finding:
    """Compare the gradients of every loss alone, and of their weighted sum."""
    if not (dist.is_available() and dist.is_gloo_available()):
        return Finding("processes", "skipped", "This torch has no gloo, the backend of processes on a CPU.")
    with tempfile.TemporaryDirectory(prefix="velm-selfcheck-") as name:
        folder = Path(name)
        cases, note = _prepare(run, folder)
        try:
            _run_processes(folder)
        except ProcessException as error:
            last = str(error).strip().splitlines()[-1]
            return failed("processes", float("inf"), f"A process failed: {last}")
        differences = {
            case: farthest(_load(folder, "whole", number), _load(folder, "processes", number))
            for number, case in enumerate(cases)
        }
    worst = max(difference for difference, _ in differences.values())
    if worst <= ROUNDING:
        return passed("processes", worst, note)
    wrong = [
        f"{case} by {difference:.1e} of the largest gradient, most for {where}"
        for case, (difference, where) in differences.items()
        if difference > ROUNDING
    ]
    right = [case for case, (difference, _) in differences.items() if difference <= ROUNDING]
    message = f"Gradients of two processes differ from those of one: {'; '.join(wrong)}."
    return failed("processes", worst, message + (f" Equal: {', '.join(right)}." if right else ""))


def cases_of(task: VisionLanguageTask) -> dict[str, dict[str, float]]:
    """Weights of the losses by case: as configured, and each loss alone if there are several."""
    weights = task.losses.weights
    alone = {name: {each: float(each == name) for each in weights} for name in weights}
    return {ALL: dict(weights), **(alone if len(weights) > 1 else {})}


def _prepare(run: SmallRun, folder: Path) -> tuple[list[str], str]:
    """Write the gradients of one process, and the job of the others; the names of the cases, and a note."""
    task = run.task()
    task.ema = None
    task.double()
    note = disable_randomness(task, run.batch)
    cases = cases_of(task)
    for number, weights in enumerate(cases.values()):
        task.losses.weights = weights
        task.losses(task.model(run.batch, task.needs), run.batch)[0].backward()
        _save(gradients(task), folder, "whole", number)
        task.zero_grad()
    job = {
        "model": {**run.model, "ema": None, "pretrained": None},  # the weights are those of `state`
        "vocabulary": run.vocabulary, "state": task.state_dict(), "batch": run.batch,
    }  # fmt: skip
    torch.save(job, folder / "job.pt")
    return list(cases), note


def _save(tensors: Mapping[str, Tensor], folder: Path, kind: str, number: int) -> None:
    torch.save(dict(tensors), folder / f"{kind}_{number}.pt")


def _load(folder: Path, kind: str, number: int) -> dict[str, Tensor]:
    loaded: dict[str, Tensor] = torch.load(folder / f"{kind}_{number}.pt", weights_only=True, mmap=True)
    return loaded


def _run_processes(folder: Path) -> None:
    """Write the gradients of two processes, which take one optimizer step per case."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # DDP warns about its search for unused parameters
    mp.spawn(_worker, args=(port, str(folder)), nprocs=WORLD)


def _worker(rank: int, port: int, name: str) -> None:
    """One of the processes: half of the batch, one step per case with a learning rate of 0."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank), "NODE_RANK": "0"}
    os.environ |= {"WORLD_SIZE": str(WORLD), "RANK": str(rank)}
    torch.set_num_threads(max(1, torch.get_num_threads() // WORLD))
    folder = Path(name)
    job: dict[str, Any] = torch.load(folder / "job.pt", weights_only=False, mmap=True)
    with quiet(), skip_pretrained():
        task = build_task(job["model"], **job["vocabulary"]).double()
        task.load_state_dict(job.pop("state"))
        disable_randomness(task, job["batch"])
        task.configure_optimizers = lambda: torch.optim.SGD(task.parameters(), lr=0.0)  # type: ignore[method-assign]
        if task.micro_batch_size is not None:
            task.micro_batch_size = MICRO_BATCH
        cases = cases_of(task)
        half = job["batch"].micro_batches(SAMPLES // WORLD)[rank]
        strategy = DDPStrategy(process_group_backend="gloo", find_unused_parameters=True, gradient_as_bucket_view=True)
        saver = _GradientSaver(cases, folder, rank)
        trainer = trainer_of(folder, devices=WORLD, strategy=strategy, max_epochs=1, callbacks=[saver])
        trainer.fit(task, DataLoader(_Repeated(half, len(cases)), batch_size=None))


class _Repeated(TorchDataset):
    """The same batch several times."""

    def __init__(self, batch: Batch, times: int) -> None:
        self.batch, self.times = batch, times

    def __len__(self) -> int:
        return self.times

    def __getitem__(self, index: int) -> Batch:
        return self.batch


class _GradientSaver(Callback):
    """Sets the loss weights of a case for every step, and writes its gradients on rank 0; DDP makes all ranks equal."""

    def __init__(self, cases: Mapping[str, dict[str, float]], folder: Path, rank: int) -> None:
        self.weights, self.folder, self.rank = list(cases.values()), folder, rank
        self.number = 0

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, VisionLanguageTask)
        self.number = batch_idx
        pl_module.losses.weights = self.weights[batch_idx]

    def on_before_optimizer_step(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, optimizer: Any
    ) -> None:
        if self.rank == 0:
            _save({name: gradient.clone() for name, gradient in gradients(pl_module).items()}, self.folder, "processes",
                  self.number)  # fmt: skip
