"""Per-loss gradients on the parameters that several losses share, and the callback that recombines them.

`balance: projection` replaces the sum of the losses' gradients on the shared parameters before the optimizer's step:

    backward of every loss but the last, to the shared parameters only ──> g_1 ... g_k-1
    backward of the sum, everywhere                                    ──> g = g_1 + ... + g_k
    before clipping and the step:  g += sum over i of (c_i - 1) g_i,  c from the products g_i . g_j

Parameters that only one loss reaches keep their plain gradient. Gradients are averaged over the ranks and summed over
the accumulated batches before they are projected, so every rank takes the same step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor, distributed, nn
from torch.optim import Optimizer

from velm import _compat
from velm.errors import ConfigError


class GradientProjection(Callback):
    """Lets the task's balancing policy recombine the losses' gradients.

    Costs a backward pass for every loss but one, from the loss to the shared parameters, and a copy of the shared
    parameters' gradients for each.
    """

    def __init__(self) -> None:
        self.shared: list[nn.Parameter] | None = None
        self.gradients: list[Tensor] = []

    def setup(self, trainer: lightning.Trainer, pl_module: Any, stage: str) -> None:
        """
        Raises:
            ConfigError: the strategy shards gradients, or a gradient scaler (float16) is in use.
        """
        if stage != "fit":
            return
        name = type(trainer.strategy).__name__
        if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
            raise ConfigError(
                f"A policy that projects gradients needs complete gradients on every device, which {name} shards: use "
                f"--trainer.strategy=ddp, or model.balance=uncertainty."
            )
        if trainer.precision == "16-mixed":
            raise ConfigError(
                "A policy that projects gradients sees them before float16 is scaled, where small ones vanish: use "
                "--trainer.precision=bf16-mixed."
            )

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self.shared, self.gradients = None, []
        if pl_module.compiled:
            _compat.allow_second_backward()

    def on_before_backward(self, trainer: lightning.Trainer, pl_module: Any, loss: Tensor) -> None:
        losses = list(pl_module.weighted_losses.values())
        if self.shared is None:
            self.shared = shared_parameters(pl_module.weighted_losses, trainable_parameters(pl_module.model))
        if not self.shared:
            return
        new = [loss_gradient(each / trainer.accumulate_grad_batches, self.shared) for each in losses[:-1]]
        self.gradients = [a + b for a, b in zip(self.gradients, new, strict=True)] if self.gradients else new

    def on_before_optimizer_step(self, trainer: lightning.Trainer, pl_module: Any, optimizer: Optimizer) -> None:
        partial, self.gradients = self.gradients, []
        shared = self.shared or []
        total = [parameter.grad.flatten() for parameter in shared if parameter.grad is not None]
        if not partial or len(total) < len(shared):  # another callback has discarded the step's gradient
            return
        gradients = [mean_over_ranks(gradient) for gradient in partial]
        gradients.append(torch.cat(total) - sum(gradients))
        coefficients = pl_module.balance.coefficients(dot_products(gradients), trainer.global_step)
        change: Any = sum((c - 1) * gradient for c, gradient in zip(coefficients, gradients, strict=True))
        for parameter, piece in zip(shared, change.split([p.numel() for p in shared]), strict=True):
            assert parameter.grad is not None
            parameter.grad += piece.view_as(parameter).to(parameter.grad.dtype)


def trainable_parameters(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that require a gradient."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def shared_parameters(losses: Mapping[str, Tensor], parameters: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    """The parameters that more than one loss depends on, by the graphs of all ranks.

    Args:
        losses: {name: float ()} with their graphs.
        parameters: the candidates, the same on every rank.
    """
    indices = {id(parameter): index for index, parameter in enumerate(parameters)}
    reached = torch.zeros(len(losses), len(parameters), dtype=torch.uint8)
    for row, loss in enumerate(losses.values()):
        reached[row, [indices[leaf] for leaf in _leaves(loss) if leaf in indices]] = 1
    if _several_ranks():
        device = next(iter(losses.values())).device
        reached = reached.to(device)
        distributed.all_reduce(reached, op=distributed.ReduceOp.MAX)
    shared = (reached.sum(0) > 1).tolist()
    return [parameter for parameter, is_shared in zip(parameters, shared, strict=True) if is_shared]


def _leaves(loss: Tensor) -> set[int]:
    """The ids of the leaf tensors of a loss's graph."""
    queue, seen, leaves = [loss.grad_fn], set(), set()
    while queue:
        node = queue.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.add(id(node.variable))
        queue.extend(following for following, _ in node.next_functions)
    return leaves


def loss_gradient(loss: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    """This rank's gradient of a loss by parameters, flattened to float (P,); keeps the graph.

    `parameter.grad` is unchanged, and DDP's hooks do not run.
    """
    gradients = torch.autograd.grad(loss, list(parameters), retain_graph=True, allow_unused=True)
    flat = [p.new_zeros(p.numel()) if g is None else g.flatten() for p, g in zip(parameters, gradients, strict=True)]
    return torch.cat(flat)


def mean_over_ranks(gradient: Tensor) -> Tensor:
    """The mean of a gradient over the ranks, as DDP computes it; in place."""
    if _several_ranks():
        distributed.all_reduce(gradient)
        gradient /= distributed.get_world_size()
    return gradient


def dot_products(gradients: Sequence[Tensor]) -> Tensor:
    """g_i . g_j of k vectors float (P,), as float (k, k), in at least single precision."""
    wide = [gradient if gradient.dtype.itemsize >= 4 else gradient.float() for gradient in gradients]
    rows = [torch.stack([torch.dot(a, b) for b in wide]) for a in wide]  # no matrix product, which may be TF32
    return torch.stack(rows)


def _several_ranks() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
