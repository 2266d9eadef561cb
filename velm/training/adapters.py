"""Adapters in a run: frozen base weights in eval mode, and a check that every adapter learns."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback
from torch import nn

from velm.errors import ConfigError
from velm.pretrained.adapters import adapted_layers
from velm.pretrained.freezing import eval_frozen
from velm.pretrained.weights import names_weights
from velm.registry import split_config

__all__ = ["LiveAdapters", "require_trained", "set_modes"]


def require_trained(adapters: Mapping[str, Any] | None, **freezing: Iterable[str]) -> None:
    """
    Args:
        adapters: `model.adapt`.
        **freezing: parts that are frozen, by the option that says so.

    Raises:
        ConfigError: a part has an adapter and is frozen.
    """
    for option, parts in freezing.items():
        both = [name for name in parts if name in (adapters or {})]
        if both:
            raise ConfigError(
                f"model.{option} names {both[0]}, and model.adapt too. An adapter freezes the part's own weights: take "
                f"the part out of model.{option} to train its adapter, or out of model.adapt."
            )


def set_modes(adapters: Mapping[str, Any] | None, model: nn.Module) -> None:
    """Put the frozen modules of adapted parts into eval mode: no dropout, fixed batch statistics."""
    for name in adapters or {}:
        eval_frozen(getattr(model, name))


class LiveAdapters(Callback):
    """Warns of adapters on random weights, and checks after the first backward pass that every adapter has a gradient.

    A part may read a layer's weight without calling the layer, or leave it unused; its adapter would then never learn,
    and DDP would fail in the second step with a message about unused parameters.
    """

    def __init__(self) -> None:
        self.done = False

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Warn if the base of an adapter is random, neither pretrained nor read from a checkpoint."""
        if pl_module.pretrained is not None or trainer.ckpt_path is not None:
            return
        config = pl_module.model_config
        random = [part for part in config["adapt"] if not names_weights(*split_config(config[part]))]
        if random:
            warnings.warn(
                f"model.adapt freezes the weights of {' and '.join(random)}, which are random: set "
                f"model.pretrained, or pretrained weights of the part.",
                stacklevel=2,
            )

    def on_after_backward(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """
        Raises:
            ConfigError: adapters have no gradient; the message names them.
        """
        if self.done:
            return
        self.done = True
        for part in pl_module.model_config["adapt"]:
            layers = adapted_layers(getattr(pl_module.model, part))
            dead = [name for name, layer in layers if all(p.grad is None for p in layer.lora_B.parameters())]
            if dead:
                raise ConfigError(
                    f"model.adapt.{part}: {len(dead)} adapted layers have no gradient, so the losses do not depend on "
                    f"calls of them: {', '.join(dead[:3])}{' ...' if len(dead) > 3 else ''}. Add them to "
                    f"exclude_modules."
                )
