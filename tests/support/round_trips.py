"""Checkpoints out to another library and in again."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

import velm
from velm.checkpoint import Checkpoint
from velm.exports import Exported
from velm.sources import open_source


def require_same_weights(one: Checkpoint, other: Checkpoint) -> None:
    """Bit for bit, by name."""
    first, second = one.state_dict(), other.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def in_out_in(source: str, output: Path, format: str, **options: Any) -> tuple[Exported, Checkpoint]:
    """Export what was imported, import that, and require the weights of the first import; the second import."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = velm.export(source, output, format=format, **options)
        before = open_source(source)
        after = open_source(f"{source.partition('/')[0]}/{made.folder}")
    require_same_weights(before, after)
    assert (before.transform, before.max_length) == (after.transform, after.max_length)
    return made, after
