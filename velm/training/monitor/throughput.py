"""How fast a run is and what it waits for: `speed/...` at every logged step."""

from __future__ import annotations

import sys
from contextlib import suppress
from time import perf_counter
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from velm.outputs import Batch
from velm.training.monitor.flops import ModelFlops, peak_flops
from velm.training.monitor.loggers import is_logged, log_metrics

__all__ = ["Speed"]


class Speed(Callback):
    """Measures from one logged step to the next, validations left out; the first step of a run is warm-up.

    Between logged steps nothing is read from the device: samples are counted on the host and tokens where they are.
    Figures are those of the main process times the number of devices.
    """

    def __init__(self) -> None:
        self.since = self.paused = self.waited = 0.0
        self.samples, self.tokens = 0, torch.zeros(())
        self.step = -1
        self.peak: float | None = None
        self.counter: ModelFlops | None = None
        self.per_sample: float | None = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Counting wants a device whose peak is known, and towers that are not compiled: those run out of sight."""
        self.step, self.counter, self.per_sample = trainer.global_step, None, None
        self.first = True
        wanted = trainer.is_global_zero and trainer.loggers and not pl_module.compiled
        self.peak = peak_flops(pl_module.device, str(trainer.precision)) if wanted else None

    def on_train_batch_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        if self.first and self.peak is not None:
            self.counter = ModelFlops()
            self.counter.__enter__()

    def on_exception(self, *_: Any) -> None:
        if self.counter is not None:
            self.counter.__exit__(None, None, None)
            self.counter = None

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Batch, *_: Any
    ) -> None:
        if self.counter is not None:
            self.per_sample = self.counter.total / max(len(batch), 1)
            self.on_exception()
        if self.first:
            self.first = False
            self._begin(trainer, pl_module)
        else:
            self.samples += len(batch)
            self.tokens = self.tokens + _tokens(batch)
        if trainer.global_step == self.step:  # a batch that is accumulated
            return
        self.step = trainer.global_step
        if is_logged(trainer, self.step) and self.samples and trainer.is_global_zero:
            log_metrics(trainer, self.figures(trainer, pl_module.device), self.step - 1)
            self._begin(trainer, pl_module)

    def on_validation_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        self.paused = perf_counter()

    def on_validation_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        self.since += perf_counter() - self.paused

    def _begin(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self.samples, self.tokens = 0, torch.zeros((), dtype=torch.int64, device=pl_module.device)
        self.waited = _waited(trainer) or 0.0
        self.since = perf_counter()

    def figures(self, trainer: lightning.Trainer, device: torch.device) -> dict[str, float]:
        """What there is to say since the last time; waits for the device."""
        tokens = int(self.tokens)
        seconds, devices = perf_counter() - self.since, trainer.world_size
        figures = {
            "speed/samples_per_s": devices * self.samples / seconds,
            "speed/tokens_per_s": devices * tokens / seconds,
        }
        waited = _waited(trainer)
        if waited is not None:
            figures["speed/data_wait"] = (waited - self.waited) / seconds
        if self.peak is not None and self.per_sample is not None:
            figures["speed/mfu"] = self.per_sample * self.samples / seconds / self.peak
        memory = peak_memory(device)
        if memory is not None:
            figures["speed/peak_memory_mb"] = memory / 1e6
        return figures


def _tokens(batch: Batch) -> Tensor | int:
    """Tokens of the batch's sentences, read and to be written, bos and eos included, padding not; int64 ()."""
    masks = [mask.sum() for mask in (batch.mask, batch.target_mask) if mask is not None]
    return sum(masks)


def _waited(trainer: lightning.Trainer) -> float | None:
    """Seconds waited for data so far; None where the loader does not count them."""
    waited: float | None = getattr(trainer.train_dataloader, "waited", None)
    return waited


def peak_memory(device: torch.device) -> float | None:
    """The most bytes that tensors have taken on a CUDA device, or this process in memory; None on Windows."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    with suppress(ImportError):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return float(peak if sys.platform == "darwin" else 1024 * peak)
    return None
