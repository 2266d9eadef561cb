"""Reads what is to be averaged."""

from __future__ import annotations

from pathlib import Path

from velm.checkpoint import Checkpoint, merge
from velm.sources import open_source

__all__ = ["read_model"]


def read_model(source: str | Path) -> Checkpoint:
    """The checkpoint of a source, with adapters merged into the weights: their factors have no mean, their products do.

    Raises:
        CheckpointError: it cannot be used; the message says why.
    """
    return merge(open_source(source))
