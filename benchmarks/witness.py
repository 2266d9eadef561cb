"""Records what a run of Lightning's Trainer did, as input of the proof; can stop the run at its first step."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from benchmarks.harness.memory import MB, highest

__all__ = ["FirstStep", "Witness"]


class FirstStep(Callback):
    """Ends the process, without clean-up, right after the first optimizer step.

    Args:
        path: file to write: parameters, loggers, callbacks, peak resident memory in MiB.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        assert trainer.global_step == 1
        found = {
            "parameters": sum(each.numel() for each in pl_module.parameters()),
            "samples": trainer.train_dataloader.batch_sampler.batch_size,
            "batches": trainer.num_training_batches,
            "loggers": len(trainer.loggers),
            "peak_mb": highest() / MB,
        }
        Path(self.path).write_text(json.dumps(found), encoding="utf-8")
        os._exit(0)


class Witness(Callback):
    """Counts what VELM is trained on.

    Args:
        path: file to write: parameters, steps, samples, time of the first step (seconds) and, on request, captions.
        sentences: keep the token ids of every sample, in order.
    """

    def __init__(self, path: str, sentences: bool = False) -> None:
        self.path, self.sentences = path, sentences
        self.samples, self.rows, self.first = 0, [], 0.0

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        self.first = self.first or time.time()
        self.samples += len(batch)
        if self.sentences:
            pairs = zip(batch.tokens.tolist(), batch.mask.sum(dim=1).tolist(), strict=True)
            self.rows += [row[: int(length)] for row, length in pairs]

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        found = {
            "parameters": sum(each.numel() for each in pl_module.model.parameters()),
            "steps": trainer.global_step,
            "samples": self.samples,
            "first": self.first,
            "sentences": self.rows,
        }
        Path(self.path).write_text(json.dumps(found), encoding="utf-8")
