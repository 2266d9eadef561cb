"""Logs norms, cosines and weights of the losses' gradients: whether the losses of a joint run help or hinder."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from velm import _compat
from velm.training.balancing.gradients import (
    dot_products,
    loss_gradient,
    mean_over_ranks,
    shared_parameters,
    trainable_parameters,
)
from velm.training.distributed.fsdp import FSDP2Strategy
from velm.training.monitor.loggers import log_metrics, logging_interval


class GradientWatch(Callback):
    """Logs `watch/...`: the gradient norms, pairwise cosines and effective weights of several losses.

    On a watched step every loss has a backward pass of its own to the shared parameters; other steps cost nothing.
    Neither the random state nor the gradients of the optimizer's step change. Inactive under FSDP2, which shards
    gradients, and under float16 with a scaler, where small gradients of an unscaled loss vanish.
    """

    def __init__(self) -> None:
        self.shared: list[nn.Parameter] | None = None
        self.interval = 0
        """Optimizer steps between two watched steps; 0: none is watched."""

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self.shared = None
        complete = not isinstance(trainer.strategy, FSDP2Strategy) and trainer.precision != "16-mixed"
        active = len(pl_module.losses) > 1 and complete and bool(trainer.loggers)
        self.interval = logging_interval(trainer) * pl_module.watch_config.every if active else 0
        if pl_module.compiled and self.interval:
            _compat.allow_second_backward()

    def on_before_backward(self, trainer: lightning.Trainer, pl_module: Any, loss: Tensor) -> None:
        last_of_step = (trainer.fit_loop.batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if not self.interval or not last_of_step or (trainer.global_step + 1) % self.interval:
            return
        losses = pl_module.weighted_losses
        if self.shared is None:
            self.shared = shared_parameters(losses, trainable_parameters(pl_module.model))
        if self.shared:
            gradients = {name: mean_over_ranks(loss_gradient(each, self.shared)) for name, each in losses.items()}
            metrics = gradient_metrics(gradients, pl_module.losses.weights, pl_module.balance, trainer.global_step)
            log_metrics(trainer, metrics, trainer.global_step)


def gradient_metrics(
    gradients: dict[str, Tensor], weights: dict[str, float], policy: Any, step: int
) -> dict[str, float]:
    """`watch/...` metrics.

    Args:
        gradients: of each weighted loss on the shared parameters, float (P,), by its name.
    """
    names, factors = list(gradients), policy.factors()
    factor = {name: float(factors.get(name, 1.0)) for name in names}
    products = dot_products([factor[name] * gradient for name, gradient in gradients.items()])
    coefficients = dict(zip(names, policy.coefficients(products, step).tolist(), strict=True))
    norms = dict(zip(names, products.diagonal().sqrt().tolist(), strict=True))
    products = products.cpu()
    metrics = {f"watch/{name}/grad_norm": norms[name] for name in names}
    for (i, a), (j, b) in combinations(enumerate(names), 2):
        if norms[a] > 0 and norms[b] > 0:
            metrics[f"watch/cosine/{a}_{b}"] = float(products[i, j]) / (norms[a] * norms[b])
    effective = {name: weights[name] * factor[name] * coefficients[name] for name in names}
    return metrics | {f"watch/weight/{name}": weight for name, weight in effective.items()}
