"""The end of a run is validated, whatever the distance between validations, so that best.ckpt may be of it."""

from __future__ import annotations

import lightning
from lightning import Callback

__all__ = ["ValidateAtEnd"]


class ValidateAtEnd(Callback):
    """Validates after the last of `max_epochs`, and after `max_steps` where no validation would come before.

    The last epoch has the smallest learning rate and most often the best weights: seven epochs with a validation every
    four would save the fourth.
    """

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        usual = trainer.val_check_batch
        batches = trainer.max_steps * trainer.accumulate_grad_batches
        if trainer.check_val_every_n_epoch == 1 and usual is not None and 0 < batches < usual:
            trainer.val_check_batch = batches

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if trainer.check_val_every_n_epoch is not None and trainer.current_epoch + 1 == trainer.max_epochs:
            trainer.check_val_every_n_epoch = 1
