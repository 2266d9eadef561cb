"""`balance: projection`: each loss's own gradient on the shared parameters, combined before the optimizer's step.

    backward of every loss but the last, on shared parameters alone ──> g_1 ... g_k-1   (kept aside)
    backward of the sum, everywhere, as ever                        ──> g = g_1 + ... + g_k
    before clipping and the step:  g += sum over i of (c_i - 1) g_i,  c from the products g_i . g_j

So parameters that one loss reaches alone get their plain gradient. Gradients are those of all devices and of all
accumulated batches before they are projected, so that every device takes the same step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor, nn
from torch.optim import Optimizer

from velm.errors import ConfigError
from velm.training.balancing.gradients import gradient_of, mean_over_devices, products_of, shared_parameters
from velm.training.memory.compile import keep_graphs

if TYPE_CHECKING:
    from velm.training.task import VisionLanguageTask

__all__ = ["GradientProjection"]


class GradientProjection(Callback):
    """Lets the task's policy recombine the losses' gradients.

    It costs a backward pass for every loss but one, from the loss to the shared parameters, and a copy of their
    gradients for each.
    """

    def __init__(self) -> None:
        self.shared: list[nn.Parameter] | None = None
        self.gradients: list[Tensor] = []

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: VisionLanguageTask) -> None:  # type: ignore[override]
        name = type(trainer.strategy).__name__
        if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
            raise ConfigError(
                f"A policy that projects gradients needs them whole on every device, which {name} does not keep: use "
                f"--trainer.strategy=ddp, or model.balance=uncertainty."
            )
        if trainer.precision == "16-mixed":
            raise ConfigError(
                "A policy that projects gradients sees them before float16 is scaled, where small ones vanish: use "
                "--trainer.precision=bf16-mixed."
            )
        self.shared, self.gradients = None, []
        keep_graphs(pl_module.compiled)

    def on_before_backward(self, trainer: lightning.Trainer, pl_module: VisionLanguageTask, loss: Tensor) -> None:  # type: ignore[override]
        losses = pl_module.weighted_losses
        if self.shared is None:
            trained = [parameter for parameter in pl_module.model.parameters() if parameter.requires_grad]
            self.shared = shared_parameters(losses, trained)
        if not self.shared:
            return
        new = [gradient_of(each / trainer.accumulate_grad_batches, self.shared) for each in [*losses.values()][:-1]]
        self.gradients = [a + b for a, b in zip(self.gradients, new, strict=True)] if self.gradients else new

    def on_before_optimizer_step(  # type: ignore[override]
        self, trainer: lightning.Trainer, pl_module: VisionLanguageTask, optimizer: Optimizer
    ) -> None:
        found, self.gradients = self.gradients, []
        shared = self.shared or []
        whole = [parameter.grad.flatten() for parameter in shared if parameter.grad is not None]
        if not found or len(whole) < len(shared):  # somebody has thrown the step's gradient away
            return
        gradients = [mean_over_devices(gradient) for gradient in found]
        gradients.append(torch.cat(whole) - sum(gradients))
        coefficients = pl_module.balance.coefficients(products_of(gradients), trainer.global_step)
        change = sum((c - 1) * gradient for c, gradient in zip(coefficients, gradients, strict=True))
        _add(shared, change)


def _add(parameters: list[nn.Parameter], change: Any) -> None:
    """Add a vector, float (P,), to the parameters' gradients."""
    for parameter, piece in zip(parameters, change.split([p.numel() for p in parameters]), strict=True):
        assert parameter.grad is not None
        parameter.grad += piece.view_as(parameter).to(parameter.grad.dtype)
