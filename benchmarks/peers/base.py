"""The model of a peer with its usual optimizer."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.harness.workload import Settings
from benchmarks.steps import Steps

__all__ = ["Peer"]


class Peer(Steps):
    """A peer with AdamW as open_clip_train.main builds it: no decay on gains, biases and scalars.

    Args:
        model: of the peer.
        settings: the same for all systems.
        fused: use torch's fused AdamW instead of its default.
    """

    def __init__(self, model: nn.Module, settings: Settings, *, fused: bool = False) -> None:
        self.model, self.settings = model.train().to(settings.device), settings
        self.optimizer = self.build_optimizer(True if fused else None)
        self.call = torch.compile(self.model) if settings.compile else self.model

    def build_optimizer(self, fused: bool | None) -> torch.optim.Optimizer:
        """The optimizer of the model's parameters."""
        plain = [p for p in self.model.parameters() if p.ndim < 2]
        decayed = [p for p in self.model.parameters() if p.ndim >= 2]
        groups = [{"params": plain, "weight_decay": 0.0}, {"params": decayed, "weight_decay": 0.2}]
        return torch.optim.AdamW(groups, lr=5e-4, betas=(0.9, 0.98), eps=1e-6, fused=fused)
