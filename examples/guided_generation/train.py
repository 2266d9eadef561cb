"""Train the diffusion model on drawn scenes; it never sees a caption."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import velm
from examples.guided_generation.diffusion import loss
from examples.guided_generation.guide import to_pixels
from examples.guided_generation.unet import UNet

__all__ = ["load", "save", "train"]


def train(
    dataset: dict[str, Any],
    network: dict[str, Any],
    *,
    steps: int = 3000,
    batch_size: int = 32,
    lr: float = 1e-3,
    ema: float = 0.999,
    seed: int = 0,
) -> UNet:
    """A network that denoises the images of a dataset's training split; prints its loss.

    Args:
        dataset: name and options of the dataset.
        network: options of `UNet`.
        steps: optimizer steps.
        batch_size: images per step, drawn with replacement.
        lr: of AdamW after 100 steps; falls to 0 along a cosine.
        ema: decay per step of the average of the weights that is returned; lower in the first steps.
        seed: of weights, images, times and noise.
    """
    torch.manual_seed(seed)
    generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    records = velm.datasets.build(dataset).split("train")
    model = UNet(**network)
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.99), fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
    )
    total = 0.0
    for step in range(1, steps + 1):
        images = to_pixels(np.stack([records[int(i)].image for i in rng.integers(len(records), size=batch_size)]))
        with torch.autocast("cpu", torch.bfloat16):
            error = loss(model, images, generator)
        optimizer.zero_grad()
        error.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - min(ema, step / (step + 9)))
        total += error.item()
        if step % 100 == 0:
            print(f"step {step} of {steps}: loss {total / 100:.4f}", flush=True)
            total = 0.0
    return average.eval()


def save(model: UNet, network: dict[str, Any], path: str | Path) -> None:
    """Write weights and options of a network."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    torch.save({"network": network, "weights": model.state_dict()}, path)


def load(path: str | Path) -> UNet:
    """The network of a file that `save` wrote."""
    checkpoint = torch.load(path, weights_only=True)
    model = UNet(**checkpoint["network"])
    model.load_state_dict(checkpoint["weights"])
    return model.eval()
