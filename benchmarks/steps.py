"""A training step, the same for all systems: forward under autocast, backward, optimizer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.harness.workload import Run, Settings
from benchmarks.inputs import Feed

__all__ = ["Steps", "run_of"]


class Steps(ABC):
    """A model with its optimizer, ready for training steps.

    Attributes:
        settings: the same for all systems.
        model: in training mode, on the device.
        optimizer: of its parameters.
    """

    settings: Settings
    model: nn.Module
    optimizer: torch.optim.Optimizer

    @abstractmethod
    def loss(self, feed: Feed) -> Tensor:
        """The loss of a batch, float ()."""

    def step(self, feed: Feed) -> int:
        """Take a step; returns the number of samples."""
        self.optimizer.zero_grad()
        half = self.settings.precision == "bf16"
        with torch.autocast(self.settings.device, torch.bfloat16, enabled=half):
            loss = self.loss(feed)
        loss.backward()
        self.optimizer.step()
        return len(feed.lengths)

    def allocate(self) -> None:
        """Allocate gradients and optimizer state without changing a weight."""
        rates = [group["lr"] for group in self.optimizer.param_groups]
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


def run_of(system: Steps, make: Callable[[int], Feed], count: int = 5) -> Run:
    """Steps on new batches; the cost of making them is the same for all systems."""
    number = iter(range(10**9))
    return Run(lambda: system.step(make(next(number))), system.allocate, steps=count)
