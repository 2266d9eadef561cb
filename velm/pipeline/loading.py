"""A pipeline from a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from velm.checkpoint import build_from_checkpoint, build_tokenizer, read_checkpoint
from velm.data.images.transforms import transform_from_config
from velm.errors import ConfigError, PluginError
from velm.model.build import needs_of
from velm.outputs import EMBEDS
from velm.pipeline.pipeline import Pipeline
from velm.registry import load_plugins

__all__ = ["load"]


def load(
    path: str | Path,
    device: str | torch.device = "cpu",
    *,
    ema: bool = True,
    plugins: Sequence[str] = (),
    image_size: int | None = None,
    precision: Literal["32", "bf16"] = "32",
) -> Pipeline:
    """A pipeline from a checkpoint: no Lightning, no pretrained weights, no code from the file.

    Args:
        path: of a .ckpt that `velm fit` wrote.
        device: where to compute, e.g. 'cpu' or 'cuda'.
        ema: the average of the weights, where training kept one; False: the weights as trained.
        plugins: modules or .py files whose decorators register parts, where the stored ones have moved.
        image_size: side of the square that images become, in pixels; None: as in validation. Random crops make
            things larger in training than they are, which somewhat larger images make up for afterwards
            (Touvron et al. 2019, arXiv 1906.06423).
        precision: '32', or 'bf16': half the memory, and about half the time on hardware that multiplies it (AMX, tensor
            cores), for results that differ in the third digit.

    Raises:
        CheckpointError: the file cannot be used; the message says why.
        PipelineError: there is no such device or precision.
    """
    load_plugins(plugins)
    checkpoint = read_checkpoint(path)
    transform = checkpoint.transform if image_size is None else {**checkpoint.transform, "image_size": image_size}
    return Pipeline(
        model=build_from_checkpoint(checkpoint, ema=ema),
        tokenizer=build_tokenizer(checkpoint),
        transform=transform_from_config(transform),
        max_length=checkpoint.max_length,
        aligned=_trained_to_align(checkpoint.config),
        data=checkpoint.data,
        logit_scale=checkpoint.logit_scale,
        device=device,
        precision=precision,
    )


def _trained_to_align(config: dict[str, Any]) -> bool:
    """A translator with memory [image, text] has both encoders, but no loss that made their embeddings meet."""
    try:
        return not config.get("losses") or bool(EMBEDS & needs_of(config["losses"]))
    except (ConfigError, PluginError):  # somebody else's loss that is not here: its word cannot be had
        return True
