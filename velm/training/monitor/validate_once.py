"""A run that ends before its first validation is validated at its last step, so that there is a best.ckpt."""

from __future__ import annotations

import lightning
from lightning import Callback

__all__ = ["ValidateOnce"]


class ValidateOnce(Callback):
    """Validates after `max_steps` where that is less than the batches between two validations."""

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        usual = trainer.val_check_batch
        batches = trainer.max_steps * trainer.accumulate_grad_batches
        if trainer.check_val_every_n_epoch == 1 and usual is not None and 0 < batches < usual:
            trainer.val_check_batch = batches
