"""Failures as callbacks of a run in a process of its own (`fit`), and two ranks of one run without a launcher."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only

CONFIG: dict[str, Any] = {
    "seed_everything": 3,
    "checkpoint_every_n_steps": 2,
    "model": {
        "image_encoder": {"name": "cnn", "dim": 16, "dropout": 0.2},
        "text_encoder": {"name": "rnn", "dim": 16, "word_dropout": 0.1},
        "decoder": {"name": "rnn", "dim": 16, "dropout": 0.3},
        "losses": {"contrastive": {}, "captioning": {}},
        "ema": 0.9,
        "validation": {"max_length": 4, "panel": 1, "captions": 2},
    },
    "data": {
        "dataset": {"name": "shapes", "train_size": 30, "val_size": 4, "test_size": 4},
        "image_size": 32,
        "batch_size": 4,
    },
    "trainer": {"max_epochs": 2, "accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 1},
}
STEPS = 14  # 30 images by 4, the rest of an epoch left out: 7 steps, twice


class Fault(Callback):
    """Something that happens once, when a step begins: to one rank, in a run's first attempt."""

    def __init__(self, step: int, rank: int = 0) -> None:
        self.step, self.rank = step, rank

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_index: int) -> None:
        first = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
        if first and trainer.global_step == self.step and trainer.global_rank == self.rank:
            self.happen(trainer, pl_module, batch)

    def happen(self, trainer: Any, pl_module: Any, batch: Any) -> None:
        raise NotImplementedError


class Signal(Fault):
    """The process gets a signal."""

    def __init__(self, step: int, rank: int = 0, number: int = int(signal.SIGKILL)) -> None:
        super().__init__(step, rank)
        self.number = number

    def happen(self, trainer: Any, pl_module: Any, batch: Any) -> None:
        os.kill(os.getpid(), self.number)


class Failure(Fault):
    """An error that nobody expects."""

    def happen(self, trainer: Any, pl_module: Any, batch: Any) -> None:
        raise ZeroDivisionError("the moon was full")


class Hang(Fault):
    """The process stands still."""

    def happen(self, trainer: Any, pl_module: Any, batch: Any) -> None:
        time.sleep(300)


class WorkerKilled(Fault):
    """The system kills a worker of the loader, as it does when memory runs out; `times` steps in a row."""

    def __init__(self, step: int, rank: int = 0, times: int = 1) -> None:
        super().__init__(step, rank)
        self.times = times

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_index: int) -> None:
        if self.step <= trainer.global_step < self.step + self.times and trainer.global_rank == self.rank:
            workers = trainer.datamodule._train_loader._iterator._workers
            os.kill(workers[0].pid, signal.SIGKILL)


class KilledWhileWriting(Fault):
    """SIGKILL when so many bytes of a checkpoint are written; -1: when all are and the file isn't in its place yet."""

    def __init__(self, step: int, rank: int = 0, at: int = 5000) -> None:
        super().__init__(step, rank)
        self.at = at

    def happen(self, trainer: Any, pl_module: Any, batch: Any) -> None:
        from velm.training.recovery import checkpoint_io as checkpoints

        written, write = 0, checkpoints._Stream.write

        def killed(stream: Any, data: Any) -> int:
            nonlocal written
            written += write(stream, data)
            if written > self.at:
                stream.file.flush()
                os.kill(os.getpid(), signal.SIGKILL)
            return len(data)

        if self.at < 0:
            checkpoints.os = _KillsInsteadOfReplacing()
        else:
            checkpoints._Stream.write = killed


class _KillsInsteadOfReplacing:
    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def replace(self, *paths: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class FullDisk(Fault):
    """/dev/full stands where files of the run's folder are written; there is room again at step `until`."""

    def __init__(self, step: int, files: list[str], rank: int = 0, until: int = 1000) -> None:
        super().__init__(step, rank)
        self.files, self.until = files, until

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_index: int) -> None:
        self.on_save_checkpoint(trainer, pl_module, {})

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        folder = Path(trainer.default_root_dir)
        for file in self.files:
            path = folder / file
            if self.step <= trainer.global_step < self.until:
                path.unlink(missing_ok=True)  # the run removes what it could not write
                path.symlink_to("/dev/full")
            elif path.is_symlink():
                path.unlink()


class Poison(Callback):
    """NaN in the images, or inf in a gradient, in some steps of a rank."""

    def __init__(self, steps: list[int], what: str = "loss", rank: int = 0) -> None:
        self.steps, self.what, self.rank = steps, what, rank

    def _now(self, trainer: Any) -> bool:
        return trainer.global_step in self.steps and trainer.global_rank == self.rank

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_index: int) -> None:
        if self._now(trainer) and self.what == "loss":
            batch.images = torch.full_like(batch.images, math.nan, dtype=torch.float32)

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        if self._now(trainer) and self.what == "gradient":
            next(p for p in pl_module.parameters() if p.grad is not None).grad.view(-1)[0] = math.inf


class Snapshots(Callback):
    """Weights, buffers, optimizer state and average before and after every step, in `snapshots.pt`; first of all."""

    def __init__(self) -> None:
        self.kept: list[Any] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_index: int) -> None:
        self.kept.append(_state(trainer, pl_module))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        torch.save(self.kept, Path(trainer.default_root_dir) / "snapshots.pt")


def _state(trainer: Any, pl_module: Any) -> dict[str, torch.Tensor]:
    state = {name: value.clone() for name, value in pl_module.state_dict().items()}
    for index, kept in trainer.optimizers[0].state_dict()["state"].items():
        state |= {f"optimizer.{index}.{name}": value.clone() for name, value in kept.items()}
    for callback in trainer.callbacks:
        if getattr(callback, "_average_model", None) is not None:
            state |= {f"average.{n}": v.clone() for n, v in callback._average_model.state_dict().items()}
    return state


def faults(*described: dict[str, Any] | Callback) -> str:
    """The option that puts faults into a run: `faults({"Signal": {"step": 3}})`."""
    listed = [
        {"class_path": f"injected.{name}", "init_args": options} for d in described for name, options in d.items()
    ]
    return f"--trainer.callbacks={yaml.safe_dump(listed, default_flow_style=True, width=10_000).strip()}"


def write_config(folder: Path, **trainer: Any) -> None:
    content = {**CONFIG, "trainer": {**CONFIG["trainer"], **trainer}}
    (folder / "run.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")


def start(folder: Path, output: Path, *arguments: str, environment: dict[str, str] | None = None) -> Any:
    """Begin `velm fit --config run.yaml` in a process of its own, which writes what it says to a file."""
    context = multiprocessing.get_context("forkserver")  # forked from a process that has imports and no threads
    context.set_forkserver_preload([__name__, "velm.training.run"])
    process = context.Process(target=_fit, args=(str(folder), str(output), list(arguments), environment or {}))
    process.start()
    return process


def fit(folder: Path, *arguments: str) -> int:
    """The exit code of `velm fit --config run.yaml` in a process of its own; -9 if it was killed."""
    return ended(start(folder, folder / "output.txt", *arguments), within=300)


def two_ranks(folder: Path, name: str, *arguments: str) -> list[Any]:
    """Both processes of a run on two devices, as torchrun would start them; they write to `<name>.<rank>.txt`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
              "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "none"}  # fmt: skip
    options = ("--trainer.devices=2", "--trainer.strategy=ddp", "--data.batch_size=2", *arguments)
    return [
        start(folder, folder / f"{name}.{rank}.txt", f"--trainer.default_root_dir={name}", *options,
              environment={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(2)
    ]  # fmt: skip


def ended(process: Any, within: float = 120.0) -> int:
    """The exit code; a process that is still there after so many seconds is a hang, and fails the test."""
    process.join(within)
    hung = process.exitcode is None
    if hung:
        process.kill()
    assert not hung, f"still there after {within} s"
    return int(process.exitcode)


def _fit(folder: str, output: str, arguments: list[str], environment: dict[str, str]) -> None:
    stream = open(output, "a", buffering=1)  # noqa: SIM115 - as long as the process
    os.dup2(stream.fileno(), 1)
    os.dup2(stream.fileno(), 2)
    os.environ |= environment
    rank_zero_only.rank = int(environment.get("RANK", 0))  # read from the environment on import, by the fork server
    multiprocessing.set_start_method("fork", force=True)  # the default: workers of a fork server outlive a killed run
    torch.set_num_threads(1)
    os.chdir(folder)
    from velm import cli

    sys.exit(cli.main(["fit", "--config", "run.yaml", *arguments]))
