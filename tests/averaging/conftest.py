"""Checkpoints of one model with other weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from velm.checkpoint import Checkpoint, read_checkpoint


@pytest.fixture
def fine_tuned(write_checkpoint: Callable[..., Path]) -> Callable[..., Checkpoint]:
    """`fine_tuned(seed, **changes to the config)`: the checkpoint of `write_checkpoint` with other weights."""

    def make(seed: int, **changes: Any) -> Checkpoint:
        checkpoint = read_checkpoint(write_checkpoint(f"{seed}.ckpt", **changes))
        generator = torch.Generator().manual_seed(seed)

        def moved(tensor: torch.Tensor) -> torch.Tensor:
            noise = 0.1 * torch.randn(tensor.shape, generator=generator)
            return tensor + noise if tensor.is_floating_point() else tensor

        return replace(
            checkpoint,
            weights={name: moved(tensor) for name, tensor in checkpoint.weights.items()},
            loss_weights={name: moved(tensor) for name, tensor in checkpoint.loss_weights.items()},
            logit_scale=10.0 * seed,
        )

    return make
