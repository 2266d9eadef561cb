"""Drawn scenes as a diffusion model sees them through noise: what a guide has to read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

import velm
from examples.guided_generation.diffusion import add_noise
from examples.guided_generation.guide import to_images, to_pixels
from examples.guided_generation.train import load

__all__ = ["Denoised"]


class Denoised(velm.Dataset):
    """A dataset whose images were noised up to a random time and denoised in one step.

    A guide compares its prompt with what the network sees, which is blurred while most is noise. A model that knows
    finished images only reads those badly (Nichol et al. 2022, arXiv 2112.10741, section 4.2, train on noise instead).

    Args:
        network: a checkpoint of `train.py`.
        dataset: name and options of the dataset of images, all of one size.
        latest: times are uniform between 0, no noise, and this; at 1 all is noise.
        seed: of times and noise.
    """

    def __init__(self, *, network: str, dataset: dict[str, Any], latest: float = 0.9, seed: int = 0) -> None:
        self.network, self.dataset, self.latest, self.seed = network, velm.datasets.build(dataset), latest, seed

    @torch.no_grad()
    def split(self, name: str) -> Sequence[velm.Record]:
        network, generator = load(self.network), torch.Generator().manual_seed(self.seed)
        records, denoised = self.dataset.split(name), []
        for start in range(0, len(records), 50):
            batch = records[start : start + 50]
            images = to_pixels(np.stack([record.image for record in batch]))
            time = self.latest * torch.rand(len(batch), generator=generator)
            noise = torch.randn(images.shape, generator=generator)
            seen = to_images(network(add_noise(images, noise, time), time))
            denoised += [replace(record, image=image) for record, image in zip(batch, seen, strict=True)]
        return denoised
