"""Whether the losses of a joint run help or hinder each other: their gradients, side by side, now and then."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import lightning
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from velm.training.balancing.gradients import gradient_of, mean_over_devices, products_of, shared_parameters
from velm.training.distributed.fsdp import FSDP2Strategy
from velm.training.memory.compile import keep_graphs

if TYPE_CHECKING:
    from velm.training.task import VisionLanguageTask

__all__ = ["GradientWatch", "WatchConfig", "is_logged", "write_figures"]


@dataclass
class WatchConfig:
    """How often the losses' gradients are looked at, and what raises an alarm.

    Args:
        every: the gradients are looked at in one of so many logged steps; 0 for never.
        chance: a contrastive loss above 1 - chance times that of a model that knows nothing is stuck; 0 for no alarm.
        effective_rank: validation embeddings whose effective rank r has r - 1 below this share of the largest possible
            have collapsed; 0 for no alarm.
        distinct: validation captions of which fewer are different than this share of the references' different ones
            have collapsed; 0 for no alarm.
    """

    every: int = 50
    chance: float = 0.02
    effective_rank: float = 0.02
    distinct: float = 0.05

    def __post_init__(self) -> None:
        if self.every < 0:
            raise ValueError(f"watch.every is a number of logged steps, 0 for never; got {self.every}.")
        for name in ("chance", "effective_rank", "distinct"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"watch.{name} is a share, 0 <= {name} < 1; got {getattr(self, name)}.")


class GradientWatch(Callback):
    """`watch/...` of the run's figures: norms, cosines and weights of the losses, where there are several.

    On a watched step every loss has a backward pass of its own to the shared parameters, and no other step costs
    anything. Neither the random state nor the gradients that are trained with are touched. Not watched: FSDP2, whose
    gradients are in shards, and float16 with a scaler, where small gradients of an unscaled loss vanish.
    """

    def __init__(self) -> None:
        self.shared: list[nn.Parameter] | None = None

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: VisionLanguageTask) -> None:  # type: ignore[override]
        self.shared = None
        whole = not isinstance(trainer.strategy, FSDP2Strategy) and trainer.precision != "16-mixed"
        watched = len(pl_module.losses) > 1 and whole and bool(trainer.loggers)
        self.steps = logged_every(trainer) * pl_module.watch_config.every if watched else 0
        keep_graphs(pl_module.compiled and self.steps > 0)

    def on_before_backward(self, trainer: lightning.Trainer, pl_module: VisionLanguageTask, loss: Tensor) -> None:  # type: ignore[override]
        last_of_step = (trainer.fit_loop.batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if not self.steps or not last_of_step or (trainer.global_step + 1) % self.steps:
            return
        losses = pl_module.weighted_losses
        if self.shared is None:
            trained = [parameter for parameter in pl_module.model.parameters() if parameter.requires_grad]
            self.shared = shared_parameters(losses, trained)
        if self.shared:
            gradients = [mean_over_devices(gradient_of(each, self.shared)) for each in losses.values()]
            write_figures(trainer, self.figures(pl_module, gradients, trainer.global_step), trainer.global_step)

    @staticmethod
    def figures(task: VisionLanguageTask, gradients: list[Tensor], step: int) -> dict[str, float]:
        """The figures of gradients of the weighted losses, each float (P,)."""
        names, weights = list(task.weighted_losses), task.losses.weights
        factors = task.balance.factors()
        entering = {name: float(factors.get(name, 1.0)) for name in names}
        gradients = [entering[name] * gradient for name, gradient in zip(names, gradients, strict=True)]
        products = products_of(gradients)
        coefficients = dict(zip(names, task.balance.coefficients(products, step).tolist(), strict=True))
        norms = dict(zip(names, products.diagonal().sqrt().tolist(), strict=True))
        products = products.cpu()
        figures = {f"watch/{name}/grad_norm": norms[name] for name in names}
        for (i, a), (j, b) in combinations(enumerate(names), 2):
            if norms[a] > 0 and norms[b] > 0:
                figures[f"watch/cosine/{a}_{b}"] = float(products[i, j]) / (norms[a] * norms[b])
        weighed = {name: weights[name] * entering[name] * coefficients[name] for name in names}
        return figures | {f"watch/weight/{name}": weight for name, weight in weighed.items()}


def logged_every(trainer: lightning.Trainer) -> int:
    """Optimizer steps from one logged step to the next; 0 where none is logged."""
    steps: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return steps


def is_logged(trainer: lightning.Trainer, step: int) -> bool:
    """Whether the figures of the step that is the `step`-th, from 1, go to the loggers."""
    return logged_every(trainer) > 0 and step % logged_every(trainer) == 0


def write_figures(trainer: lightning.Trainer, figures: dict[str, float], step: int) -> None:
    """A row of figures for every logger, of the main process; `Trainer.callback_metrics` stays as it is."""
    if trainer.is_global_zero:
        for logger in trainer.loggers:
            logger.log_metrics(figures, step=step)
