"""Opens the loggers of a config when the run has begun, and shows them its config and its best score."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning
import yaml
from lightning.pytorch.callbacks import Callback

from velm.errors import ConfigError
from velm.training.recovery.run_checkpoints import RunCheckpoint
from velm.training.tracking.guard import Guarded, logger_name, show
from velm.util import warn_on_oserror, write_atomically

__all__ = ["FILE", "Track", "continue_runs"]

FILE = "tracking.json"
"""In the run folder: which runs the loggers have opened, [{"logger", "place", "run"}]; `place` is a hash."""

Runs = list[dict[str, str]]


class Track(Callback):
    """Opens the loggers of `trainer.logger`, and stores which runs they opened, so that a resumed run continues them.

    Args:
        folder: of the run.
        going_on: a run whose folder is lost is continued by what its checkpoint says.
    """

    def __init__(self, folder: Path, *, going_on: bool = False) -> None:
        self.folder, self.going_on = folder, going_on
        self.runs: Runs = []

    def state_dict(self) -> dict[str, Any]:
        return {"runs": self.runs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.runs = list(state_dict["runs"]) if self.going_on else []

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """
        Raises:
            ConfigError: a logger cannot begin because of an option or a missing login; on all ranks.
        """
        loggers, refusal = list(_guarded(trainer)), ""
        _continue(loggers, self.runs)
        try:
            for logger in loggers:
                logger.open()
        except ConfigError as error:
            refusal = str(error)
        refusal = trainer.strategy.broadcast(refusal)
        if refusal:
            raise ConfigError(refusal)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Show the config; config.yaml is in the run folder by now."""
        self._store(trainer)
        file = self.folder / "config.yaml"
        if not (trainer.is_global_zero and file.is_file()):
            return
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
        config.get("trainer", {}).pop("logger", None)  # may hold a token
        text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
        show(trainer, lambda tracker: tracker.log_config(config, text))

    def on_save_checkpoint(self, trainer: lightning.Trainer, *_: Any) -> None:
        self._store(trainer)

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Show the score of best.ckpt."""
        scores = [
            c.best_model_score for c in trainer.checkpoint_callbacks if isinstance(c, RunCheckpoint) and c.monitor
        ]
        for logger in _guarded(trainer):
            for score in scores:
                if score is not None and trainer.is_global_zero:
                    logger.log_metrics({"best/score": float(score)}, max(trainer.global_step - 1, 0))

    def _store(self, trainer: lightning.Trainer) -> None:
        """Write tracking.json if a run has been opened since."""
        if not trainer.is_global_zero:
            return
        runs = [run for logger in _guarded(trainer) if (run := _identity(logger)) is not None]
        if runs and runs != self.runs:
            self.runs = runs
            file = self.folder / FILE
            with warn_on_oserror(file), write_atomically(file) as partial:
                partial.write_text(json.dumps(runs, indent=2) + "\n", encoding="utf-8")


def continue_runs(folder: Path, loggers: Iterable[Any]) -> None:
    """Let guarded loggers continue the runs that tracking.json in a run folder names, if they have the same place."""
    with suppress(OSError, ValueError):
        _continue(loggers, json.loads((folder / FILE).read_text(encoding="utf-8")))


def _continue(loggers: Iterable[Any], runs: Runs) -> None:
    left = list(runs)
    for logger in loggers:
        found = next((run for run in left if {**run, "run": ""} == {**_place(logger), "run": ""}), None)
        if found is not None:
            left.remove(found)
            logger.tracker.continue_run(found["run"])


def _place(logger: Any) -> dict[str, str]:
    place = hashlib.sha256(str(logger.tracker.place()).encode()).hexdigest()[:16]  # a server's URL may hold a password
    return {"logger": logger_name(logger), "place": place}


def _identity(logger: Any) -> dict[str, str] | None:
    """The run of a logger, as in tracking.json; None if it has none or cannot be asked now."""
    run = None if logger.tracker.place() is None else logger.ask(logger.tracker.run_id)
    return None if run is None else {**_place(logger), "run": run}


def _guarded(trainer: lightning.Trainer) -> Iterator[Any]:
    return (logger for logger in trainer.loggers if isinstance(logger, Guarded))
