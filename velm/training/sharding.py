"""FSDP2 by `--trainer.strategy=fsdp2`: weights, gradients and optimizer state in shards, one on each device."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from velm.training.blocks import blocks_of

__all__ = ["FSDP2Strategy", "average_gradients", "clip_sharded", "register_strategy", "shard"]


class FSDP2Strategy(ModelParallelStrategy):
    """Lightning's strategy for FSDP2 with every device in one group and checkpoints that are one ordinary file."""

    strategy_name = "fsdp2"

    def __init__(self, **options: Any) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False, **options)

    def setup_environment(self) -> None:
        assert self.cluster_environment is not None
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()


def register_strategy() -> None:
    """Make `--trainer.strategy=fsdp2` a name that the Trainer knows."""
    if FSDP2Strategy.strategy_name not in StrategyRegistry:
        StrategyRegistry.register(FSDP2Strategy.strategy_name, FSDP2Strategy, description=FSDP2Strategy.__doc__)


def shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """Cut a model's weights into shards: each repeated block by itself, then what is left of the whole.

    A block's weights are together only while it computes. Those of the rest (embeddings, projections, the output
    matrix that the captioning loss multiplies) stay together from the model's forward pass to its backward pass.
    """
    for block in blocks_of(model):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def average_gradients(module: nn.Module) -> None:
    """The mean over the devices of gradients that no wrapper averages: a loss's temperature under FSDP2."""
    for parameter in module.parameters():
        if parameter.grad is not None:
            distributed.all_reduce(parameter.grad)
            parameter.grad /= distributed.get_world_size()


def clip_sharded(parameters: list[nn.Parameter], limit: float) -> Tensor:
    """Clip gradients of which some are shards and some are whole by their common norm, which is returned, float ()."""
    given = [parameter for parameter in parameters if parameter.grad is not None]
    kinds = [[p for p in given if isinstance(p, DTensor) is sharded] for sharded in (True, False)]
    norms = [get_total_norm([p.grad for p in kind if p.grad is not None]) for kind in kinds if kind]
    total = torch.stack([n.full_tensor() if isinstance(n, DTensor) else n for n in norms]).norm()
    for kind in kinds:
        clip_grads_with_norm_(kind, limit, total)
    return total
