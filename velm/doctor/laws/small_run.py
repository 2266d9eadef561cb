"""`SmallRun`: a config's own model and a few samples of its own data, on the CPU."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment
from torch import nn

from velm import _compat
from velm.data.batches.collate import Collate
from velm.data.batches.samples import CaptionSamples, Sample
from velm.outputs import Batch
from velm.training.build import build_data, build_task
from velm.training.data import VisionLanguageData
from velm.training.hard_negatives import announce_hard_negatives
from velm.training.matching_data import require_matching_data
from velm.training.recovery.resume import run_seed
from velm.training.task import VisionLanguageTask

SAMPLES = 8
SEARCHED = 64  # samples among which images with several captions are searched
DROPOUT = 0.1


@dataclass
class SmallRun:
    """A config reduced to what a check needs.

    Attributes:
        config: of `velm.training.run.parse_fit`.
        data: with two images per batch, loaded in this process.
    """

    config: Mapping[str, Any]
    data: VisionLanguageData

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> SmallRun:
        """Open the data of a config.

        Raises:
            ConfigError, DataError: as `velm fit`.
        """
        options = dict(config["data"])
        small: dict[str, Any] = {"batch_size": 2, "eval_batch_size": 2, "num_workers": 0, "cache_features": False}
        if options["max_tokens"] is not None:
            small["max_tokens"] = min(options["max_tokens"], 2 * options["max_length"])
        return cls(config, build_data({**options, **small}))

    @property
    def model(self) -> dict[str, Any]:
        """The model's options, without compilation."""
        return {**self.config["model"], "compile": False}

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        return {"vocab_size": self.data.vocab_size, "pad_id": self.data.pad_id}

    @cached_property
    def _task(self) -> VisionLanguageTask:
        torch.manual_seed(run_seed())
        task = build_task(self.model, **self.vocabulary)
        require_matching_data(task.model, task.needs, self.data)
        announce_hard_negatives(task.losses, self.data)
        return task

    def task(self) -> VisionLanguageTask:
        """A new task with the initial weights of a run; the same weights on every call."""
        return copy.deepcopy(self._task)

    def run_data(self) -> VisionLanguageData:
        """A new data module that shares the opened dataset."""
        data = copy.copy(self.data)
        data.trainer, data._train_loader, data._place = None, None, None
        return data

    @cached_property
    def batch(self) -> Batch:
        """Eight samples of the training split; see `_choose`."""
        data = self.run_data()
        data.captions, data.captions_per_image = "all", 1
        items = data.train_items()
        samples = [_read(items, number) for number in _choose(items)]
        half = SAMPLES // 2
        if samples[-1].image_id == samples[-2].image_id and self.data.captions_per_image > 1:
            samples[-1].image = samples[-2].image
        for row in range(half):  # longer texts first, so that the halves differ in their number of tokens
            if _length(samples[row]) < _length(samples[row + half]):
                samples[row], samples[row + half] = samples[row + half], samples[row]
        batch = Collate(self.data.pad_id)(samples)
        batch.teacher = self._task.losses.stand_in_teacher(len(batch), self._task.model_config["embed_dim"])
        return batch


def _choose(items: CaptionSamples) -> list[int]:
    """Sample numbers with the images a b c d | a b e e; eight images if images have one caption.

    The halves share images, and the second half has one image twice.
    """
    by_image: dict[int, list[int]] = {}
    for number in range(min(len(items), SEARCHED)):
        by_image.setdefault(int(items.image_of[number]), []).append(number)
    several = [numbers for numbers in by_image.values() if len(numbers) > 1]
    if len(several) < 3:
        firsts = [numbers[0] for numbers in by_image.values()]
        return [firsts[number % len(firsts)] for number in range(SAMPLES)]
    a, b, e = several[:3]
    others = [numbers for numbers in by_image.values() if numbers not in (a, b, e)] or [e]
    c, d = others[0], others[-1]
    return [a[0], b[0], c[0], d[-1], a[1], b[1], e[0], e[1]]


def _read(items: CaptionSamples, number: int) -> Sample:
    """A sample, or its replacement if it cannot be read."""
    return next(each for each in items.__getitems__([number]) if isinstance(each, Sample))


def _length(sample: Sample) -> int:
    return len(sample.tokens if sample.target is None else sample.target)


def disable_randomness(task: VisionLanguageTask, batch: Batch) -> str:
    """Set the task to training mode without dropout and batch statistics.

    Returns:
        a note on what else was changed; empty if nothing was.
    """
    changed = freeze_batch_norm(task)
    for module in task.modules():
        if type(module).__name__ == "StochasticDepth" or _compat.is_dropout(module):
            module.p = 0.0  # type: ignore[assignment]
        for name, value in list(vars(module).items()):
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)
    if _random(task, batch):
        task.eval()
        return "All parts are in evaluation mode, since the model is random even without dropout."
    return "Batch norm uses its running statistics, as it does when frozen." if changed else ""


def force_dropout(task: VisionLanguageTask) -> None:
    """Set the task to training mode, with a probability of at least 0.1 in every dropout layer."""
    for module in task.train().modules():
        if _compat.is_dropout(module):
            module.p = max(float(module.p), DROPOUT)  # type: ignore[arg-type, assignment]


def freeze_batch_norm(task: VisionLanguageTask) -> bool:
    """Set the task to training mode, with running statistics in batch norm; whether this changes any layer."""
    norms: list[nn.Module] = [part for part in task.train().modules() if _compat.is_batch_norm(part) and part.training]
    for norm in norms:
        norm.eval()
    return bool(norms)


@torch.no_grad()
def _random(task: VisionLanguageTask, batch: Batch) -> bool:
    """Whether two passes over the same batch give different losses."""
    totals = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        totals.append(task.losses(task.model(batch, task.needs), batch)[0])
    return not torch.equal(totals[0], totals[1])


def trainer_of(folder: Path, **options: Any) -> lightning.Trainer:
    """A Trainer on the CPU without logs, bars and checkpoints."""
    defaults: dict[str, Any] = {
        "accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False, "use_distributed_sampler": False,
        "limit_val_batches": 0, "num_sanity_val_steps": 0, "plugins": [LightningEnvironment()],
        "default_root_dir": folder,
    }  # fmt: skip
    return lightning.Trainer(**{**defaults, **options})


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence Lightning's remarks about short runs, and what a run prints: `--json` has stdout for itself."""
    logs = [logging.getLogger(f"lightning.{room}") for room in ("pytorch", "fabric")]
    levels = [log.level for log in logs]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            for log in logs:
                log.setLevel(logging.ERROR)
            yield
        finally:
            for log, level in zip(logs, levels, strict=True):
                log.setLevel(level)
