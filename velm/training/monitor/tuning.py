"""Applies and prints what a LearningRateFinder or BatchSizeFinder of the user has found."""

from __future__ import annotations

from typing import Any

import lightning
from lightning.pytorch.callbacks import BatchSizeFinder, Callback, LearningRateFinder

from velm.training.optim import set_learning_rate

__all__ = ["FoundOptions"]


class FoundOptions(Callback):
    """Prints the options that Lightning's finders chose; Lightning runs them before every other callback.

    LearningRateFinder sets the rate of the optimizer only, and the schedule would set it back after one step.
    """

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        for finder in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(finder, LearningRateFinder) and finder.optimal_lr is not None:
                self._learning_rate(trainer, pl_module, finder.optimal_lr)
            elif isinstance(finder, BatchSizeFinder) and finder.optimal_batch_size is not None:
                _say(trainer, f"BatchSizeFinder: data.batch_size is {finder.optimal_batch_size} from now on.")

    def _learning_rate(self, trainer: lightning.Trainer, pl_module: Any, found: Any) -> None:
        measured, lr = len(found.results["lr"]), pl_module.optimizer_config.lr
        if pl_module.found_lr is None:
            _say(
                trainer,
                f"LearningRateFinder found no rate in {measured} steps, of which it leaves out the first 10 and the "
                f"last: model.optimizer.lr stays {lr:g}. It needs 13 or more: num_training_steps of the finder, and as "
                f"many in the run (trainer.max_epochs).",
            )
            return
        set_learning_rate(trainer, pl_module.parts, pl_module.optimizer_config)
        _say(trainer, f"LearningRateFinder: model.optimizer.lr is {lr:.3g} from now on.")


def _say(trainer: lightning.Trainer, text: str) -> None:
    if trainer.is_global_zero:
        print(text, flush=True)
