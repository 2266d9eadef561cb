"""Loggers whose failures do not end a run: a tracking server that is down, a full disk, a logger that raises.

What a logger could not take waits in memory and is sent when it answers again. Attempts are rare enough to cost at most
a tenth of the run's time. `metrics.csv` has every row in any case.
"""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from time import monotonic
from typing import Any

import lightning
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger
from lightning.pytorch.loggers.logger import DummyExperiment, rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only

from velm.errors import ConfigError
from velm.training.recovery.run_checkpoints import RunCheckpoint
from velm.training.tracking.trackers import Tracker, tracker_of
from velm.util import describe_error, warn_on_oserror

__all__ = ["Guarded", "guard", "logger_name", "show"]

PAUSE, SHARE = 30.0, 10.0
"""Seconds between two attempts: PAUSE, and at least SHARE times what the last one took."""
TRIES = 3
"""Attempts at a call before it is given up, so that one that can never succeed does not hold up the others."""
WAITING = 2000
"""Calls that wait at most; the oldest are given up first."""
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
"""Without these, MLflow waits for a dead server up to four minutes per call."""


@dataclass
class _State:
    """Calls that wait with the attempts made so far, the time of the next attempt, and what is done."""

    waiting: deque[tuple[Callable[[], Any], int]] = field(default_factory=partial(deque, maxlen=WAITING))
    until: float = 0.0
    lost: int = 0
    opened: bool = False
    inside: bool = False
    warned: bool = False


class Guarded:
    """The part of a guarded logger that comes before its own class; see `guard`.

    The experiment (the run at the tracker) is opened when the run has begun and not when Lightning sets up, so that a
    start that fails leaves no empty run there.
    """

    guard_state: _State
    tracker: Tracker

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The logger's own experiment; one without effect while it cannot be opened."""
        state = self.guard_state
        if state.inside:
            return super().experiment  # type: ignore[misc]
        if not state.opened:
            return _Unopened(self)
        return self.ask(lambda: super(Guarded, self).experiment) or DummyExperiment()  # type: ignore[misc]

    @property
    def name(self) -> Any:
        if self.tracker.names_open_runs:
            self.open()
        return super().name  # type: ignore[misc]

    @property
    def version(self) -> Any:
        if self.tracker.names_open_runs:
            self.open()
        return super().version  # type: ignore[misc]

    def open(self) -> None:
        """Open the experiment, on rank 0; a failure is tried again with the next call.

        Raises:
            ConfigError: an option or a missing login is the cause.
        """
        if not self.guard_state.opened:
            self.guard_state.opened = True
            self.attempt(self._open)

    def _open(self) -> None:
        try:
            _ = super().experiment  # type: ignore[misc]
        except Exception as error:
            if self.tracker.is_mistake(error):
                self.guard_state.opened = False
                raise ConfigError(
                    f"trainer.logger {logger_name(self)} cannot begin: {describe_error(error).rstrip('.')}. Change its "
                    f"init_args or log in (W&B: wandb login, or init_args.offline: true), or leave trainer.logger out: "
                    f"VELM writes metrics.csv and TensorBoard events without it."
                ) from error
            if not self.tracker.go_offline(error):
                raise
            _ = super().experiment  # type: ignore[misc]
        self.tracker.go_on()

    def ask(self, call: Callable[[], Any]) -> Any:
        """What a call returns; None if it fails or is not made in the pause after a failure."""
        found: list[Any] = []
        self._now(lambda: found.append(call()))
        return found[0] if found else None

    @rank_zero_only
    def attempt(self, call: Callable[[], Any]) -> None:
        """Make the calls that wait, then this one; on a failure they wait, and a warning says so once."""
        state = self.guard_state
        if state.inside:
            call()
            return
        state.lost += len(state.waiting) == WAITING
        state.waiting.append((call, 0))
        if monotonic() >= state.until:
            self._send()

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.open()
        named = self.tracker.metric_names(metrics)
        self.attempt(lambda: super(Guarded, self).log_metrics(named, step))  # type: ignore[misc]

    def log_hyperparams(self, params: Any, *args: Any, **options: Any) -> None:
        self.open()
        self.attempt(lambda: super(Guarded, self).log_hyperparams(params, *args, **options))  # type: ignore[misc]

    def log_graph(self, *args: Any, **options: Any) -> None:
        self._now(lambda: super(Guarded, self).log_graph(*args, **options))  # type: ignore[misc]

    def save(self) -> None:
        if self.guard_state.opened:
            self._now(lambda: super(Guarded, self).save())  # type: ignore[misc]

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """VELM's own checkpoints are named best and last; Lightning's scan would call both best."""
        if isinstance(checkpoint_callback, RunCheckpoint):
            alias, path = str(checkpoint_callback.filename), str(checkpoint_callback.best_model_path)
            self.attempt(lambda: self.tracker.after_save(alias, path))
        else:
            self._now(lambda: super(Guarded, self).after_save_checkpoint(checkpoint_callback))  # type: ignore[misc]

    @rank_zero_only
    def finalize(self, status: str) -> None:
        state = self.guard_state
        if not state.opened:  # a run that fails before its first step leaves nothing
            return
        state.until = 0.0
        self._send()
        self._now(partial(self._finish, status))
        if state.waiting or state.lost:
            warnings.warn(
                f"{logger_name(self)} did not get {len(state.waiting) + state.lost} of the calls of this run; "
                f"metrics.csv has all its rows.",
                stacklevel=2,
            )

    def _finish(self, status: str) -> None:
        self.tracker.finish(status)
        super().finalize(status)  # type: ignore[misc]

    def _send(self) -> None:
        """Make the calls that wait, until one fails."""
        state = self.guard_state
        while state.waiting:
            call, tries = state.waiting.popleft()
            if self._now(call):
                continue
            if tries + 1 < TRIES:
                state.waiting.appendleft((call, tries + 1))
            else:
                state.lost += 1
            return

    def _now(self, call: Callable[[], Any]) -> bool:
        """Whether the call succeeded; not made, and False, in the pause after a failure."""
        state = self.guard_state
        if state.inside:
            call()
            return True
        start = monotonic()
        if start < state.until:
            return False
        state.inside = True
        try:
            call()
        except ConfigError:
            raise
        except Exception as error:
            state.until = monotonic() + max(PAUSE, SHARE * (monotonic() - start))
            self._warn(error)
            return False
        finally:
            state.inside = False
        return True

    def _warn(self, error: Exception) -> None:
        if not self.guard_state.warned:
            self.guard_state.warned = True
            warnings.warn(
                f"{logger_name(self)} cannot log ({describe_error(error)}): training continues, what it did not get "
                f"waits and is sent when it answers again. metrics.csv has all rows.",
                stacklevel=3,
            )


class _Unopened:
    """Stands for the experiment before the run has begun; the first use of an attribute opens it."""

    def __init__(self, logger: Guarded) -> None:
        self._logger = logger

    def __getattr__(self, name: str) -> Any:
        self._logger.open()
        return getattr(self._logger.experiment, name)


def show(trainer: lightning.Trainer, action: Callable[[Tracker], None]) -> None:
    """Let every logger that shows more than metrics do so, on rank 0."""
    for logger in trainer.loggers if trainer.is_global_zero else ():
        if isinstance(logger, Guarded):
            logger.attempt(partial(action, logger.tracker))
        elif not isinstance(logger, CSVLogger):
            with warn_on_oserror(f"{getattr(logger, 'log_dir', None)}/events"):
                action(tracker_of(logger))


def guard(logger: Logger) -> Any:
    """The same logger, state shared, as an object of a subclass of its class whose failures do not end a run."""
    if isinstance(logger, MLFlowLogger):
        for name, value in PATIENCE.items():
            os.environ.setdefault(name, value)
    cls = _guarded_class(type(logger))
    guarded = cls.__new__(cls)
    guarded.__dict__ = logger.__dict__
    guarded.guard_state, guarded.tracker = _State(), tracker_of(guarded)
    return guarded


@cache
def _guarded_class(cls: type) -> Any:
    """A name of its own: the command line finds loggers by the names of all subclasses."""
    return type(f"Guarded{cls.__name__}", (Guarded, cls), {"__module__": __name__, "__doc__": cls.__doc__})


def logger_name(logger: Any) -> str:
    """The name of the class that the user gave."""
    return type(logger).__name__.removeprefix("Guarded")
