"""`model.patch_dropout_tail`: the last steps see all patches, as inference does."""

from __future__ import annotations

from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback
from torch import nn

from velm.errors import ConfigError
from velm.layers.patch_dropout import PatchDropout

__all__ = ["PatchDropoutTail", "require_patch_dropout"]


def require_patch_dropout(model: nn.Module, tail: float) -> None:
    """
    Raises:
        ConfigError: `tail` is no fraction, or it is above 0 and no encoder of the model drops patches.
    """
    if not 0 <= tail <= 1:
        raise ConfigError(f"model.patch_dropout_tail is a fraction of all steps, between 0 and 1; got {tail}.")
    if tail and not any(part.drop_prob for part in _layers(model)):
        raise ConfigError(
            f"model.patch_dropout_tail is {tail}, and no encoder drops patches: set patch_dropout of the image encoder "
            f"(vit), e.g. 0.5, or leave the tail out."
        )


class PatchDropoutTail(Callback):
    """Ends patch dropout for the last fraction of the steps (unmasked tuning, FLIP, arXiv 2212.00794, section 4.2).

    What a step does depends on its number only, so that a resumed run goes on as if it had not been stopped.

    Args:
        tail: fraction of all optimizer steps, above 0.
    """

    def __init__(self, tail: float) -> None:
        self.tail = tail

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        drops = trainer.global_step < (1 - self.tail) * trainer.estimated_stepping_batches
        for layer in _layers(pl_module):
            layer.active = drops


def _layers(model: nn.Module) -> list[PatchDropout]:
    return [part for part in model.modules() if isinstance(part, PatchDropout)]
