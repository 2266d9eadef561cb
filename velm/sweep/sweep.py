"""`Sweep`: starts trials, reports their validations to the pruner and records how they end, until all are done."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from velm.errors import ConfigError, VelmError
from velm.sweep.check import check_trial
from velm.sweep.storage import sampler_of, suggest
from velm.sweep.study import Study, short_names, shown, trial_options
from velm.sweep.trials import Process, describe_end, environment, last_lines, start_fit, trial_folder, validations

if TYPE_CHECKING:
    import optuna

__all__ = ["Sweep", "lock_folder"]

LINES = 10
"""Lines of a failed trial's log that are recorded."""
STOPPED = (143, -15)
"""Exit codes of a run that SIGTERM ended, with a checkpoint and before there was one."""


@dataclass
class Running:
    """A trial whose process runs.

    Attributes:
        slot: its place among those that run at a time.
        reported: validations that the record has.
        pruned: whether the pruner has stopped it.
    """

    trial: optuna.Trial
    process: Process
    folder: Path
    slot: int
    reported: int
    pruned: bool = False


@dataclass
class Sweep:
    """A search for the best parameters.

    A trial that was running when an earlier sweep ended stays 'running' in the record. It is continued first: with its
    number, its parameters and, in its folder, its last checkpoint.

    Args:
        folder: of the sweep; trial 7 runs in trial_007 inside it.
        study: what is searched, with the full names of options.
        record: see `velm.sweep.storage.begin`.
        args: of `velm fit`, without the parameters.
        trials: how many there are at the end, those of earlier starts included.
        jobs: how many run at a time.
        cores: threads that the trials share.
        gpus: see `velm.sweep.trials.environment`.
        check: raises a `VelmError` if `velm fit` cannot take the options of a trial.
        start: starts the process of a trial from its options, folder and environment.
        poll: seconds between two looks at the running trials.
    """

    folder: Path
    study: Study
    record: optuna.Study
    args: Sequence[str]
    trials: int
    jobs: int = 1
    cores: int = 1
    gpus: Sequence[str] = ()
    check: Callable[[Sequence[str]], None] = check_trial
    start: Callable[[Sequence[str], Path, Mapping[str, str]], Process] = start_fit
    poll: float = 0.5
    running: list[Running] = field(default_factory=list)

    def run(self) -> None:
        """Run trials until there are enough.

        KeyboardInterrupt ends those that run by SIGTERM, so that they save their checkpoints, and is raised again; a
        second one kills them.
        """
        self.unfinished = [trial for trial in self._trials() if trial.state.name == "RUNNING"]
        try:
            while True:
                while len(self.running) < self.jobs and (trial := self._next()) is not None:
                    self._begin(trial)
                if not self.running:
                    return
                time.sleep(self.poll)
                self.running = [each for each in self.running if not self._has_ended(each)]
        except BaseException:
            self._stop()
            raise

    def _trials(self) -> list[optuna.trial.FrozenTrial]:
        """The trials of the record that have begun, by number."""
        return [trial for trial in self.record.get_trials(deepcopy=False) if trial.state.name != "WAITING"]

    def _next(self) -> optuna.Trial | None:
        """An unfinished trial of an earlier sweep, else a new one; None: there are enough."""
        import optuna

        if self.unfinished:
            trial = self.unfinished.pop(0)
            self.record.sampler = sampler_of(self.study.sampler, trial.number)
            return optuna.Trial(self.record, trial._trial_id)
        number = len(self._trials())
        if number >= self.trials:
            return None
        if self.study.sampler["name"] == "grid":
            points = self.study.grid()
            if number >= len(points):
                return None
            if len(self.record.get_trials(deepcopy=False)) == number:  # else a killed sweep has added the next one
                self.record.enqueue_trial(points[number])
        self.record.sampler = sampler_of(self.study.sampler, number)
        return self.record.ask()

    def _begin(self, trial: optuna.Trial) -> None:
        """Start the process of a trial, or record that its config is wrong."""
        parameters = suggest(trial, self.study)
        folder = trial_folder(self.folder, trial.number)
        options = [*self.args, *trial_options(parameters)]
        values = "  ".join(f"{name}={shown(parameters[full])}" for full, name in short_names(parameters).items())
        say(f"trial {trial.number}  {values}")
        try:
            self.check(options)
        except VelmError as error:
            self._fail(trial, f"the config is wrong: {error}", [])
            return
        slot = min(set(range(self.jobs)) - {each.slot for each in self.running})
        env = environment(slot, self.jobs, cores=self.cores, gpus=self.gpus)
        reported = len(self._trials()[trial.number].intermediate_values)
        self.running.append(Running(trial, self.start(options, folder, env), folder, slot, reported))

    def _has_ended(self, each: Running, stopping: bool = False) -> bool:
        """Report new validations, stop a trial that the pruner gives up, record the end of one that has ended."""
        code = each.process.poll()  # before its metrics are read, so that the last row is among them
        values = validations(each.folder, self.study.metric)
        for number, value in enumerate(values[each.reported :], each.reported + 1):
            each.trial.report(value, number)
            each.reported = number
            if code is None and not each.pruned and not stopping and each.trial.should_prune():
                each.process.terminate()
                each.pruned = True
        if code is None:
            return False
        if not stopping or code not in STOPPED:
            self._record_end(each, code, values)
        return True

    def _record_end(self, each: Running, code: int, values: Sequence[float]) -> None:
        import optuna

        if code != 0 and each.pruned:
            self.record.tell(each.trial, state=optuna.trial.TrialState.PRUNED)
            say(f"trial {each.trial.number}  pruned after validation {each.reported}")
        elif code != 0:
            self._fail(each.trial, describe_end(code, each.folder), last_lines(each.folder, LINES))
        elif not values:
            cause = f"metrics.csv has no finite {self.study.metric}"
            self._fail(each.trial, cause, last_lines(each.folder, LINES))
        else:
            self.record.tell(each.trial, self.study.best(values))
            best = self.record.best_trial
            reached = f"{self.study.metric} {self.study.best(values):.4g}"
            say(f"trial {each.trial.number}  {reached}  best {best.value:.4g} (trial {best.number})")

    def _fail(self, trial: optuna.Trial, cause: str, lines: Sequence[str]) -> None:
        import optuna

        trial.set_user_attr("cause", cause)
        trial.set_user_attr("log", list(lines))
        self.record.tell(trial, state=optuna.trial.TrialState.FAIL)
        say(f"trial {trial.number}  failed: {cause}")

    def _stop(self) -> None:
        """End the running trials; those that SIGTERM ends stay unfinished in the record."""
        for each in self.running:
            each.process.terminate()
        if self.running:
            say("The running trials save their checkpoints and end. The same command continues them.")
        try:
            while self.running:
                time.sleep(self.poll)
                self.running = [each for each in self.running if not self._has_ended(each, stopping=True)]
        except KeyboardInterrupt:
            for each in self.running:
                each.process.kill()
            raise


def say(line: str) -> None:
    """Print a line of progress."""
    print(line, file=sys.stderr, flush=True)


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """
    Raises:
        ConfigError: another sweep runs in the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "sweep.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(
            f"{folder} is used by another sweep. Wait for it, end it, or give this one its own folder: --output ..."
        ) from None
    try:
        yield
    finally:
        lock.release()
