"""`velm.load`: a pipeline from a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

from velm.checkpoint import Checkpoint, aligned_by_losses, build_from_checkpoint, build_tokenizer
from velm.data.images.transforms import transform_from_config
from velm.encoders.image_size import require_image_size
from velm.errors import ConfigError, PluginError
from velm.pipeline.pipeline import Pipeline
from velm.pretrained.adapters import merge_adapters
from velm.registry import load_plugins
from velm.sources import open_source


def load(
    path: str | Path,
    device: str | torch.device = "cpu",
    *,
    ema: bool = True,
    plugins: Sequence[str] = (),
    image_size: int | None = None,
    precision: Literal["32", "bf16"] = "32",
) -> Pipeline:
    """A pipeline from a checkpoint, without Lightning or code from the file; adapters are merged.

    Args:
        path: a .ckpt written by `velm fit`, a folder of `velm export` or 'hf://org/name' for one on the Hugging Face
            hub, or a model of another library, see `velm.sources.open_source`.
        device: where to compute, e.g. 'cpu' or 'cuda'.
        ema: use the average of the weights where training kept one; False: the weights as trained.
        plugins: modules or .py files whose decorators register parts, if the stored ones have moved.
        image_size: side of the square that images are resized to, in pixels; None: as in validation. Random crops
            enlarge objects in training, which a somewhat larger size at test time compensates
            (Touvron et al. 2019, arXiv 1906.06423).
        precision: '32' or 'bf16'. bf16 takes half the memory, and about half the time on hardware that multiplies it
            (AMX, tensor cores); results differ in the third digit.

    Raises:
        CheckpointError: the file cannot be used; the message says why.
        ConfigError: the image encoder cannot read images of `image_size`.
        PipelineError: the device or the precision does not exist.
    """
    load_plugins(plugins)
    return pipeline_of(open_source(path), device, ema=ema, image_size=image_size, precision=precision)


def pipeline_of(
    checkpoint: Checkpoint,
    device: str | torch.device = "cpu",
    *,
    ema: bool = True,
    image_size: int | None = None,
    precision: Literal["32", "bf16"] = "32",
) -> Pipeline:
    """The pipeline of a checkpoint in memory; arguments and errors are those of `load`."""
    transform = checkpoint.transform if image_size is None else {**checkpoint.transform, "image_size": image_size}
    model = merge_adapters(build_from_checkpoint(checkpoint, ema=ema))
    if image_size is not None and model.image_encoder is not None:
        require_image_size(model.image_encoder, image_size, "image_size")
    return Pipeline(
        model=model,
        tokenizer=build_tokenizer(checkpoint),
        transform=transform_from_config(transform),
        max_length=checkpoint.max_length,
        aligned=_aligned(checkpoint),
        data=checkpoint.data,
        logit_scale=checkpoint.logit_scale,
        logit_bias=checkpoint.logit_bias,
        tokenization=checkpoint.tokenization,
        device=device,
        precision=precision,
    )


def _aligned(checkpoint: Checkpoint) -> bool:
    """Whether a loss trained the joint space; in files written before this was stored, by the losses' classes."""
    if checkpoint.aligned is not None:
        return checkpoint.aligned
    try:
        return aligned_by_losses(checkpoint.config)
    except (ConfigError, PluginError):  # the class of a loss is not installed: assume that it aligns
        return True
