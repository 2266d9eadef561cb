"""The data module and the task of a parsed config, without a Trainer: for `velm doctor`, `plan` and `selfcheck`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import lightning

from velm.training.config import Augmentation, OptimizerConfig, ValidationConfig, WatchConfig
from velm.training.data import VisionLanguageData
from velm.training.task import VisionLanguageTask

__all__ = ["build_data", "build_task", "count_devices"]


def build_data(options: Mapping[str, Any]) -> VisionLanguageData:
    """The data module of `parse_fit`'s `data`."""
    return VisionLanguageData(**{**options, "augment": Augmentation(**options["augment"])})


def build_task(options: Mapping[str, Any], *, vocab_size: int, pad_id: int) -> VisionLanguageTask:
    """The task of `parse_fit`'s `model`, for a tokenizer of so many ids."""
    built = {
        "optimizer": OptimizerConfig(**options["optimizer"]),
        "validation": ValidationConfig(**options["validation"]),
        "watch": WatchConfig(**options["watch"]),
        "vocab_size": vocab_size,
        "pad_id": pad_id,
    }
    return VisionLanguageTask(**{**options, **built})


def count_devices(options: Mapping[str, Any]) -> int:
    """How many devices share a step under `parse_fit`'s `trainer`; launches nothing.

    Raises:
        Exception: whatever the Trainer has against it (an accelerator that is not there, ...).
    """
    names = ("accelerator", "devices", "num_nodes")
    chosen = {name: options[name] for name in names if options.get(name) is not None}
    if isinstance(options.get("strategy"), str):
        chosen["strategy"] = options["strategy"]
    log = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    level = log.level
    log.setLevel(logging.ERROR)  # which devices there are, and which are not used
    try:
        return lightning.Trainer(**chosen, logger=False, enable_checkpointing=False).world_size
    finally:
        log.setLevel(level)
