"""Merges the adapters of a checkpoint into its weights."""

from __future__ import annotations

from dataclasses import replace

from velm.checkpoint.build import build_from_checkpoint
from velm.checkpoint.content import Checkpoint
from velm.pretrained.adapters import merge_adapters

__all__ = ["merge"]


def merge(checkpoint: Checkpoint) -> Checkpoint:
    """A checkpoint of the same model without adapters; one that has none is returned as it is.

    Args:
        checkpoint: with an average of the weights, it is the average that is merged.

    Raises:
        MissingPackageError: peft is not installed.
        CheckpointError: a merged weight is NaN or inf, or the weights do not fit the config.
    """
    if not checkpoint.config.get("adapt"):
        return checkpoint
    weights = merge_adapters(build_from_checkpoint(checkpoint)).state_dict()
    config = {key: value for key, value in checkpoint.config.items() if key != "adapt"}
    return replace(checkpoint, weights=weights, raw_weights=None, config=config)
