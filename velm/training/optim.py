"""AdamW over named parts, a schedule of warm-up and cosine, and the moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import get_ema_multi_avg_fn

from velm.errors import ConfigError
from velm.training.config import OptimizerConfig
from velm.training.fine_tuning.layer_decay import decay_of_parts, parameters_by_rate


def parameter_groups(modules: dict[str, nn.Module], config: OptimizerConfig) -> list[dict[str, Any]]:
    """AdamW's groups: one for each part, with and without weight decay; frozen parameters are in no group.

    With `layer_decay`, one for each layer of a part, 'image_encoder/layer3' and 'image_encoder/layer3/no_decay'. A
    module that `lr_scale` names inside a part, 'decoder.projector', has groups of its own.

    Raises:
        ConfigError: `lr_scale` or `layer_decay` names a part that is not in `modules`, or one without blocks.
    """
    inner = {id(p): name for name in config.lr_scale for p in _module(modules, name).parameters() if "." in name}
    layer_decay = decay_of_parts(modules, config.layer_decay)
    groups: list[dict[str, Any]] = []
    for part, module in modules.items():
        own: dict[str, list[nn.Parameter]] = {}
        for name, factor, parameters in parameters_by_rate(part, module, layer_decay.get(part)):
            trainable = [parameter for parameter in parameters if parameter.requires_grad]
            groups += _groups(name, [p for p in trainable if id(p) not in inner], part, factor, config)
            for parameter in trainable:
                if id(parameter) in inner:
                    own.setdefault(inner[id(parameter)], []).append(parameter)
        for name, parameters in own.items():
            groups += _groups(name, parameters, name, 1.0, config)
    return groups


def _groups(
    name: str, parameters: Sequence[nn.Parameter], scaled: str, factor: float, config: OptimizerConfig
) -> list[dict[str, Any]]:
    """The groups of parameters with the rate that `lr_scale` gives `scaled`, with and without weight decay."""
    lr = config.lr * config.lr_scale.get(scaled, 1.0) * factor
    decayed, plain = [p for p in parameters if p.dim() >= 2], [p for p in parameters if p.dim() < 2]
    both = ((name, decayed, config.weight_decay), (f"{name}/no_decay", plain, 0.0))
    return [{"name": n, "params": params, "lr": lr, "weight_decay": decay} for n, params, decay in both if params]


def _module(modules: dict[str, nn.Module], name: str) -> nn.Module:
    """A part by its name, or a module inside one by its path."""
    part, _, path = name.partition(".")
    if part not in modules:
        raise ConfigError(f"optimizer.lr_scale names {name!r}; the parts are {', '.join(modules)}.")
    try:
        return modules[part].get_submodule(path)
    except AttributeError as error:
        inside = ", ".join(f"{part}.{child}" for child, _ in modules[part].named_children())
        raise ConfigError(f"optimizer.lr_scale names {name!r}; in the {part} there are {inside}.") from error


def build_optimizer(
    modules: dict[str, nn.Module], config: OptimizerConfig, fused: bool = True
) -> torch.optim.Optimizer:
    """AdamW over the parts; fused unless a gradient scaler (float16) has to unscale before clipping."""
    return torch.optim.AdamW(parameter_groups(modules, config), betas=config.betas, fused=fused)


def warmup_cosine(step: int, total: int, warmup: float, min_lr: float) -> float:
    """Factor on the peak rate at an optimizer step.

    ::

        1 |    /---\\__
          |   /       \\__
        0 |__/___________\\__ min_lr
             ^ warmup * total
    """
    rise = max(1, round(warmup * total))
    if step < rise:
        return (step + 1) / rise
    progress = min(1.0, (step - rise) / max(1, total - rise))
    return min_lr + (1 - min_lr) * 0.5 * (1 + math.cos(math.pi * progress))


def build_schedule(optimizer: torch.optim.Optimizer, config: OptimizerConfig, total: int) -> LambdaLR:
    """`warmup_cosine` for every group; `total` in optimizer steps."""
    return LambdaLR(optimizer, lambda step: warmup_cosine(step, total, config.warmup, config.min_lr))


def set_learning_rate(trainer: lightning.Trainer, modules: dict[str, nn.Module], config: OptimizerConfig) -> None:
    """Give the optimizer and the schedule that a Trainer has built of `modules` the rates of `config`."""
    for place in trainer.lr_scheduler_configs:
        schedule = place.scheduler
        assert isinstance(schedule, LambdaLR)  # `build_schedule`
        rates = [group["lr"] for group in parameter_groups(modules, config)]
        schedule.base_lrs = [*rates]
        for group, rate, factor in zip(schedule.optimizer.param_groups, rates, schedule.lr_lambdas, strict=True):
            group["initial_lr"], group["lr"] = rate, rate * factor(schedule.last_epoch)


def warm_ema(decay: float) -> Callable[[list[Tensor], list[Tensor], Tensor], None]:
    """Moving average whose decay after n updates is min(decay, (1 + n) / (10 + n)).

    With a fixed decay of 0.999 a third of the average after 1,000 steps would be the initial, random weights. For
    `torch.optim.swa_utils.AveragedModel`.
    """

    def average(averaged: list[Tensor], current: list[Tensor], count: Tensor) -> None:
        updates = int(count)
        get_ema_multi_avg_fn(min(decay, (1 + updates) / (10 + updates)))(averaged, current, count)

    return average
