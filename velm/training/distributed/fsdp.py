"""FSDP2 by `--trainer.strategy=fsdp2`: weights, gradients and optimizer state in shards, one on each device."""

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

from velm.training.memory.blocks import blocks_of

__all__ = ["FSDP2Strategy", "average_gradients", "clip_sharded", "put_together", "register_strategy", "shard"]


class FSDP2Strategy(ModelParallelStrategy):
    """Lightning's strategy for FSDP2 with every device in one group, and checkpoints like those of one device.

    A checkpoint is one file that any number of devices goes on from, with FSDP2 or without: weights whole, the state of
    the optimizer under the numbers that torch gives its parameters. (Lightning numbers them in the model's order, which
    is another one where norms and biases have a group of their own.)
    """

    strategy_name = "fsdp2"

    def __init__(self, **options: Any) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False, **options)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()
        atexit.register(_leave_group)  # not at teardown: a Trainer may fit, and then test

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The whole state as torch has it, on rank 0; nothing on the others."""
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

        assert self.model is not None
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        inner = getattr(optimizer, "_optimizer", optimizer)
        named: dict[str, Any] = get_optimizer_state_dict(self.model, inner, options=options)
        if self.global_rank != 0:
            return {}
        numbers = {name: number for number, name in enumerate(_in_order(named))}
        groups = [{**group, "params": [numbers[name] for name in group["params"]]} for group in named["param_groups"]]
        return {"state": {numbers[name]: state for name, state in named["state"].items()}, "param_groups": groups}

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Each device reads the file and keeps its shards."""
        from torch.distributed.checkpoint import state_dict as sharded

        assert self.model is not None
        options = sharded.StateDictOptions(full_state_dict=True)
        path = self.broadcast(checkpoint_path)
        checkpoint: dict[str, Any] = torch.load(path, mmap=True, map_location="cpu", weights_only=weights_only)
        sharded.set_model_state_dict(self.model, checkpoint.pop("state_dict"), options=options)
        for optimizer, saved in zip(self.optimizers, checkpoint.get("optimizer_states", ()), strict=False):
            names = list(_in_order(sharded.get_optimizer_state_dict(self.model, optimizer)))
            groups = [{**group, "params": [names[n] for n in group["params"]]} for group in saved["param_groups"]]
            named: dict[str, Any] = {
                "state": {names[n]: state for n, state in saved["state"].items()},
                "param_groups": groups,
            }
            sharded.set_optimizer_state_dict(self.model, optimizer, named, options=options)
        return checkpoint


def _leave_group() -> None:
    """Lest the group's threads end a process that is done with an error of their own."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def _in_order(named: Mapping[str, Any]) -> Iterator[str]:
    """Parameters in torch's order: group after group."""
    return chain.from_iterable(group["params"] for group in named["param_groups"])


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


def put_together(model: nn.Module, together: bool) -> None:
    """Every weight whole on every device, for methods that are no `forward` (a decoder's steps); or in shards again."""
    for part in model.modules():
        if isinstance(part, FSDPModule):
            if part is not model:  # which keeps its own together anyway
                part.set_reshard_after_forward(not together, recurse=False)
            part.unshard() if together else part.reshard()


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
