"""Logs throughput, data wait, MFU and peak memory as `speed/...` at every logged step.

Lightning's `ThroughputMonitor` synchronises with the GPU at every batch and knows neither data wait nor recomputation;
its `measure_flops` counts activations that are recomputed in the backward pass as work of the model.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from time import perf_counter
from typing import Any

import lightning
import torch
from lightning.fabric.utilities.throughput import get_available_flops
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from velm import _compat
from velm._compat import TorchDispatchMode
from velm.outputs import Batch
from velm.training.monitor.loggers import is_logged, log_metrics

_DTYPES = {
    "64-true": torch.float64,
    "16-mixed": torch.float16,
    "16-true": torch.float16,
    "bf16-mixed": torch.bfloat16,
    "bf16-true": torch.bfloat16,
}


class Speed(Callback):
    """Measures from one logged step to the next, without validations; the first step of a run is warm-up.

    Between logged steps the host does not wait for the device: samples are counted on the host, tokens on the device.
    Rates are those of rank 0 times the number of devices.
    """

    def __init__(self) -> None:
        self.since = self.paused = self.waited = self.begun = self.before = 0.0
        self.samples, self.tokens = 0, torch.zeros(())
        self.step = -1
        self.peak: float | None = None
        self.counter: ModelFlops | None = None
        self.per_sample: float | None = None

    @property
    def elapsed(self) -> float:
        """Seconds of training and validation, those before a resumption included."""
        return self.before + (perf_counter() - self.begun if self.begun else 0.0)

    def state_dict(self) -> dict[str, float]:
        return {"elapsed": self.elapsed}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self.before = state_dict["elapsed"]

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Count FLOPs if the peak of the device is known and nothing is compiled: compiled code is not dispatched."""
        self.step, self.counter, self.per_sample = trainer.global_step, None, None
        self.first, self.begun = True, perf_counter()
        counts_flops = trainer.is_global_zero and trainer.loggers and not pl_module.compiled
        self.peak = peak_flops(pl_module.device, str(trainer.precision)) if counts_flops else None

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
        if trainer.global_step == self.step:  # a micro-batch of an unfinished step
            return
        self.step = trainer.global_step
        if is_logged(trainer, self.step) and self.samples and trainer.is_global_zero:
            log_metrics(trainer, self.metrics(trainer, pl_module.device), self.step - 1)
            self._begin(trainer, pl_module)

    def on_validation_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        self.paused = perf_counter()

    def on_validation_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        self.since += perf_counter() - self.paused

    def _begin(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self.samples, self.tokens = 0, torch.zeros((), dtype=torch.int64, device=pl_module.device)
        self.waited = _waited(trainer) or 0.0
        self.since = perf_counter()

    def metrics(self, trainer: lightning.Trainer, device: torch.device) -> dict[str, float]:
        """The `speed/...` metrics since the last logged step; waits for the device."""
        tokens = int(self.tokens)
        seconds, devices = perf_counter() - self.since, trainer.world_size
        metrics = {
            "speed/samples_per_s": devices * self.samples / seconds,
            "speed/tokens_per_s": devices * tokens / seconds,
            "speed/elapsed_s": self.elapsed,
        }
        waited = _waited(trainer)
        if waited is not None:
            metrics["speed/data_wait"] = (waited - self.waited) / seconds
        if self.peak is not None and self.per_sample is not None:
            metrics["speed/mfu"] = self.per_sample * self.samples / seconds / self.peak
        memory = peak_memory(device)
        if memory is not None:
            metrics["speed/peak_memory_mb"] = memory / 1e6
        return metrics


def _tokens(batch: Batch) -> Tensor | int:
    """int64 (), tokens of the encoded and decoded texts of a batch, with bos and eos, without padding."""
    masks = [mask.sum() for mask in (batch.mask, batch.target_mask) if mask is not None]
    return sum(masks)


def _waited(trainer: lightning.Trainer) -> float | None:
    """Seconds spent waiting for data so far; None if the loader does not count them."""
    waited: float | None = getattr(trainer.train_dataloader, "waited", None)
    return waited


def peak_memory(device: torch.device) -> float | None:
    """Peak bytes: allocated by tensors on a CUDA device, resident of this process on a CPU; None on Windows."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    with suppress(ImportError):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return float(peak if sys.platform == "darwin" else 1024 * peak)
    return None


class ModelFlops(TorchDispatchMode):
    """Counts the FLOPs of operations that torch has a formula for: matrix products, convolutions, attention.

    Recomputed activations are not counted, as MFU counts the work of the model and not of the device (PaLM, arXiv
    2204.02311, appendix B). cuDNN RNNs have no formula and count as 0.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        formula: Callable[..., int] | None = _compat.flop_formula(func)
        if formula is not None and not _compat.is_recomputing():
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Peak FLOP/s by the data sheet; None for a CPU or a device that Lightning does not know."""
    if device.type != "cuda":
        return None
    return get_available_flops(device, _DTYPES.get(precision, torch.float32))
