"""Reads what is to be averaged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from velm.checkpoint import Checkpoint, build_from_checkpoint
from velm.pretrained.adapters import merge_adapters
from velm.sources import open_source

__all__ = ["read_model"]


def read_model(source: str | Path) -> Checkpoint:
    """The checkpoint of a source, with adapters merged into the weights: their factors have no mean, their products do.

    Raises:
        CheckpointError: it cannot be used; the message says why.
    """
    checkpoint = open_source(source)
    if not checkpoint.config.get("adapt"):
        return checkpoint
    model = merge_adapters(build_from_checkpoint(checkpoint))
    config = {name: value for name, value in checkpoint.config.items() if name != "adapt"}
    return replace(checkpoint, config=config, weights=model.state_dict(), raw_weights=None)
