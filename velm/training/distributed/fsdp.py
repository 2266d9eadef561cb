"""FSDP2, as `--trainer.strategy=fsdp2`: every rank holds a shard of weights, gradients and optimizer state."""

from __future__ import annotations

import atexit
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from velm import _compat
from velm.pretrained.base import fill_in
from velm.sources import open_weights
from velm.training.memory.recompute import blocks_of

__all__ = [
    "FSDP2Strategy",
    "average_gradients",
    "clip_sharded_gradients",
    "register_strategy",
    "reshard",
    "shard",
    "unshard",
]


class FSDP2Strategy(ModelParallelStrategy):
    """Lightning's FSDP2 strategy with all ranks in one group and the checkpoint format of a single device.

    A checkpoint is one file, from which any number of devices can resume, with FSDP2 or without: complete weights, and
    the optimizer's state under torch's parameter numbers. (Lightning numbers parameters in the model's order, which
    differs where norms and biases have a group of their own.)
    """

    strategy_name = "fsdp2"

    def __init__(self, **options: Any) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False, **options)

    def setup_environment(self) -> None:
        _compat.set_data_parallel_size(self, self.num_nodes * self.num_processes)
        super().setup_environment()
        atexit.register(_destroy_process_group)  # not at teardown: a Trainer may fit, and then test

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The complete state in torch's format on rank 0; empty on the other ranks."""
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

        assert self.model is not None
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        inner = getattr(optimizer, "optimizer", optimizer)
        named: dict[str, Any] = get_optimizer_state_dict(self.model, inner, options=options)
        if self.global_rank != 0:
            return {}
        numbers = {name: number for number, name in enumerate(_parameter_names(named))}
        groups = [{**group, "params": [numbers[name] for name in group["params"]]} for group in named["param_groups"]]
        return {"state": {numbers[name]: state for name, state in named["state"].items()}, "param_groups": groups}

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Every rank reads the file and keeps its shards."""
        from torch.distributed.checkpoint import state_dict as sharded

        assert self.model is not None
        options = sharded.StateDictOptions(full_state_dict=True)
        path = self.broadcast(checkpoint_path)
        content = torch.load(path, mmap=True, map_location="cpu", weights_only=weights_only)
        checkpoint = fill_in(content, path, open_weights)
        sharded.set_model_state_dict(self.model, checkpoint.pop("state_dict"), options=options)
        for optimizer, saved in zip(self.optimizers, checkpoint.get("optimizer_states", ()), strict=False):
            names = list(_parameter_names(sharded.get_optimizer_state_dict(self.model, optimizer)))
            groups = [{**group, "params": [names[n] for n in group["params"]]} for group in saved["param_groups"]]
            named: dict[str, Any] = {
                "state": {names[n]: state for n, state in saved["state"].items()},
                "param_groups": groups,
            }
            sharded.set_optimizer_state_dict(self.model, optimizer, named, options=options)
        return checkpoint


def _destroy_process_group() -> None:
    """Stop the group's threads, which otherwise may fail while the process exits."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def _parameter_names(named: Mapping[str, Any]) -> Iterator[str]:
    """Names of parameters in torch's order: group after group."""
    return chain.from_iterable(group["params"] for group in named["param_groups"])


def register_strategy() -> None:
    """Register `--trainer.strategy=fsdp2` with Lightning."""
    if FSDP2Strategy.strategy_name not in StrategyRegistry:
        StrategyRegistry.register(FSDP2Strategy.strategy_name, FSDP2Strategy, description=FSDP2Strategy.__doc__)


def shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """Shard a model's weights: each repeated block as one unit, then the remaining parameters as another.

    A block's weights are gathered only while it computes. The remaining ones (embeddings, projections, the output
    matrix that the captioning loss multiplies) stay gathered from the model's forward pass to its backward pass.
    """
    for block in blocks_of(model):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def unshard(model: nn.Module) -> None:
    """Gather all weights on every rank, for methods other than `forward` (a decoder's steps)."""
    for unit in _units(model):
        if unit is not model:  # the root keeps its own weights gathered anyway
            unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()


def reshard(model: nn.Module) -> None:
    """Undo `unshard`."""
    for unit in _units(model):
        if unit is not model:
            unit.set_reshard_after_forward(True, recurse=False)
        unit.reshard()


def _units(model: nn.Module) -> list[FSDPModule]:
    return [part for part in model.modules() if isinstance(part, FSDPModule)]


def average_gradients(module: nn.Module) -> None:
    """Average over the ranks, in place, gradients that no wrapper averages: a loss's temperature under FSDP2."""
    for parameter in module.parameters():
        if parameter.grad is not None:
            distributed.all_reduce(parameter.grad)
            parameter.grad /= distributed.get_world_size()


def clip_sharded_gradients(parameters: list[nn.Parameter], limit: float) -> Tensor:
    """Clip sharded and unsharded gradients by their joint norm.

    Returns:
        the norm before clipping, float ().
    """
    trained = [parameter for parameter in parameters if parameter.grad is not None]
    groups = [[p for p in trained if isinstance(p, DTensor) is sharded] for sharded in (True, False)]
    norms = [get_total_norm([p.grad for p in group if p.grad is not None]) for group in groups if group]
    total = torch.stack([n.full_tensor() if isinstance(n, DTensor) else n for n in norms]).norm()
    for group in groups:
        clip_grads_with_norm_(group, limit, total)
    return total
