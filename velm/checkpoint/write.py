"""Writes a `Checkpoint` that no Trainer wrote: an imported model, an average of others."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from velm.checkpoint.content import COMPLETE, Checkpoint
from velm.version import __version__

__all__ = ["write_checkpoint"]

_NAMES = (
    "config", "tokenizer", "transform", "max_length", "plugins", "data", "target", "aligned", "logit_scale",
    "logit_bias", "tokenization", "origin",
)  # fmt: skip


def write_checkpoint(checkpoint: Checkpoint, path: str | Path) -> None:
    """Write a file for `velm.load` and `model.pretrained`; a file of that name is replaced when all is written.

    Args:
        checkpoint: its `path`, `version` and `raw_weights` are not written.
        path: a .ckpt; its folder is made.
    """
    path = Path(path).expanduser()
    entry: dict[str, Any] = {"format": COMPLETE, "version": __version__}
    entry |= {name: getattr(checkpoint, name) for name in _NAMES}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        torch.save({"velm": entry, "state_dict": checkpoint.state_dict()}, part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
