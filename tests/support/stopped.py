"""`velm fit` in a process of its own that something stops; imported there, so it is a module and no test."""

from __future__ import annotations

import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback

from velm import cli


class Send(Callback):
    """Sends its own process a signal when a step begins."""

    def __init__(self, step: int, number: int) -> None:
        self.step, self.number = step, number

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_index: int) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), self.number)


def fit(folder: Path, *arguments: str) -> int:
    """Run `velm fit --config run.yaml` in a folder; the exit code, -9 if it was killed."""
    context = multiprocessing.get_context("forkserver")  # forked from a process that has imports and no threads
    context.set_forkserver_preload([__name__, "velm.training.run"])
    process = context.Process(target=_fit, args=(str(folder), list(arguments)))
    process.start()
    process.join(300)
    assert process.exitcode is not None
    return process.exitcode


def _fit(folder: str, arguments: list[str]) -> None:
    multiprocessing.set_start_method("fork", force=True)  # the default: workers of a fork server outlive a killed run
    torch.set_num_threads(1)
    os.chdir(folder)
    sys.exit(cli.main(["fit", "--config", "run.yaml", *arguments]))
