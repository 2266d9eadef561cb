"""A logger that fails costs no run: calls wait, are sent later, and are given up one by one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from tiny_run import fit, tiny_config

from velm.errors import ConfigError
from velm.training.monitor.loggers import EventLogger, ResumableCSVLogger
from velm.training.recovery.run_checkpoints import run_checkpoints
from velm.training.tracking import guard as module
from velm.training.tracking.callback import Track, continue_runs
from velm.training.tracking.guard import Guarded, guard
from velm.training.tracking.run_loggers import run_loggers
from velm.training.tracking.trackers import Tracker


class Service(Logger):
    """A logger of a service that may be down."""

    def __init__(self, place: str = "here", run: str | None = None) -> None:
        self.down: Exception | None = None
        self.rows: list[tuple[dict[str, float], int | None]] = []
        self.calls, self.place, self.run, self.status = 0, place, run, ""

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        self.calls += 1
        if self.down is not None:
            raise self.down
        return SimpleNamespace(run="one")

    name, version = "service", "1"

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        _ = self.experiment
        self.rows.append((metrics, step))

    def log_hyperparams(self, params: Any) -> None:
        _ = self.experiment

    def finalize(self, status: str) -> None:
        self.status = status


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Seconds that a test sets."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(module, "monotonic", lambda: clock.now)
    return clock


def log_steps(logger: Any, *steps: int, clock: SimpleNamespace | None = None) -> None:
    """A row for each step, a second apart."""
    for step in steps:
        logger.log_metrics({"a": float(step)}, step)
        if clock is not None:
            clock.now += 1.0


def test_a_guarded_logger_is_of_its_class_and_shares_its_state() -> None:
    logger = Service()
    guarded = guard(logger)
    assert isinstance(guarded, Service)
    assert isinstance(guarded, Guarded)
    guarded.log_metrics({"a": 1.0}, 3)
    assert logger.rows == [({"a": 1.0}, 3)]


def test_nothing_is_opened_before_the_run_has_begun() -> None:
    guarded = guard(Service())
    experiment = guarded.experiment  # as Lightning does when it sets up
    assert guarded.calls == 0
    guarded.finalize("failed")
    assert guarded.status == "", "a start that fails leaves nothing"
    assert experiment.run == "one", "a callback that needs it has it at once"
    guarded.finalize("success")
    assert guarded.status == "success"


def test_what_an_outage_withholds_is_sent_afterwards(clock: SimpleNamespace) -> None:
    guarded = guard(Service())
    guarded.log_metrics({"a": 0.0}, 0)
    guarded.down = OSError("no route")
    with pytest.warns(UserWarning, match=r"Service cannot log \(OSError: no route\): training continues") as told:
        log_steps(guarded, 1, 2, 3)
    assert len(told) == 1
    calls = guarded.calls
    guarded.log_metrics({"a": 4.0}, 4)
    assert guarded.calls == calls, "none is tried in the pause"
    assert guarded.experiment.anything() is None, "and a user's own call has no effect"
    guarded.down = None
    clock.now += module.PAUSE
    guarded.log_metrics({"a": 5.0}, 5)
    assert guarded.rows == [({"a": float(step)}, step) for step in range(6)]


def test_attempts_take_at_most_a_tenth_of_the_time(clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(Service):
        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            clock.now += 20.0
            self.spent = getattr(self, "spent", 0.0) + 20.0
            raise TimeoutError

    guarded, begin = guard(Slow()), clock.now
    with pytest.warns(UserWarning, match="cannot log"):
        log_steps(guarded, *range(2000), clock=clock)
    assert guarded.spent <= 20.0 + (clock.now - begin) / module.SHARE


@pytest.mark.filterwarnings("ignore:.*cannot log")
def test_a_call_that_can_never_succeed_does_not_hold_up_the_others(clock: SimpleNamespace) -> None:
    guarded = guard(Service())

    def broken() -> None:
        raise RuntimeError("never")

    guarded.attempt(broken)
    for step in range(module.TRIES):
        clock.now += module.PAUSE
        guarded.log_metrics({}, step)
    clock.now += module.PAUSE
    guarded.log_metrics({}, 9)
    assert [step for _, step in guarded.rows] == [*range(module.TRIES), 9]
    with pytest.warns(UserWarning, match="Service did not get 1 of the calls of this run; metrics.csv has all"):
        guarded.finalize("success")


def test_a_mistake_in_the_options_is_an_error_at_the_start() -> None:
    guarded = guard(Service())
    guarded.down = ValueError("project 'a b' has a blank")
    with pytest.raises(ConfigError, match=r"Service cannot begin: ValueError: project 'a b' has a blank.*wandb login"):
        guarded.open()
    guarded.finalize("failed")
    assert guarded.status == ""


def test_the_files_of_velm_stay_beside_the_loggers_of_the_user(tmp_path: Path) -> None:
    def kinds(given: Any, keep: bool | None = False) -> list[type]:
        loggers = run_loggers(tmp_path, given, keep)
        return [type(logger).__mro__[2 * isinstance(logger, Guarded)] for logger in loggers or ()]

    assert kinds(None) == kinds(True) == [ResumableCSVLogger, EventLogger]
    assert kinds(Service()) == kinds([Service()]) == [Service, ResumableCSVLogger, EventLogger]
    assert kinds([Service(), CSVLogger("x")]) == [Service, CSVLogger, ResumableCSVLogger, EventLogger]
    assert kinds(False) == []
    assert kinds(Service(), keep=None) == [Service], "velm test and the like write no files of a run"
    assert run_loggers(tmp_path, None, None) is False


class Known(Tracker):
    """A tracker of `Service`, whose runs have an identity."""

    def is_mistake(self, error: Exception) -> bool:
        return False

    def place(self) -> str:
        return self.logger.place

    def run_id(self) -> str:
        return self.logger.run or "new"

    def continue_run(self, run_id: str) -> None:
        self.logger.run = run_id


def trainer_of(*loggers: Any) -> Any:
    strategy = SimpleNamespace(broadcast=lambda value: value)
    return SimpleNamespace(loggers=loggers, is_global_zero=True, strategy=strategy)


def test_a_run_is_continued_at_the_same_place_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "tracker_of", Known)
    here, there = guard(Service("here", "r1")), guard(Service("https://user:password@there", "r2"))
    Track(tmp_path).on_save_checkpoint(trainer_of(here, there))
    assert "password" not in (tmp_path / "tracking.json").read_text()
    again, moved, same = guard(Service("https://user:password@there")), guard(Service("elsewhere")), guard(Service())
    continue_runs(tmp_path, [again, moved, same])
    assert (again.run, moved.run, same.run) == ("r2", None, "r1")
    continue_runs(tmp_path / "nowhere", [again])


@pytest.mark.parametrize("going_on", [True, False])
def test_a_run_whose_folder_is_lost_is_continued_by_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, going_on: bool
) -> None:
    monkeypatch.setattr(module, "tracker_of", Known)
    track = Track(tmp_path / "a")
    (tmp_path / "a").mkdir()
    track.on_save_checkpoint(trainer_of(guard(Service(run="r1"))))
    later, logger = Track(tmp_path / "b", going_on=going_on), guard(Service())
    later.load_state_dict(track.state_dict())
    later.on_fit_start(trainer_of(logger), None)  # type: ignore[arg-type]
    assert logger.run == ("r1" if going_on else None), "another run that starts from the checkpoint is another run"


@pytest.mark.parametrize(("log_model", "handed"), [(False, []), (True, ["last", "best"]), ("all", ["best", "last"])])
def test_checkpoints_are_handed_over_if_asked_for(tmp_path: Path, log_model: Any, handed: list[str]) -> None:
    given: list[str] = []

    class Keeper(Tracker):
        def log_checkpoint(self, path: str, alias: str) -> None:
            assert Path(path).is_file()
            given.append(alias)

    guarded = guard(Service())
    guarded._log_model, guarded.tracker = log_model, Keeper(guarded)
    guarded.open()
    *_, last, best = run_checkpoints(str(tmp_path), monitor="val/score", every_n_steps=None)
    for callback in (best, last):
        (tmp_path / f"{callback.filename}.ckpt").touch()
        callback.best_model_path = str(tmp_path / f"{callback.filename}.ckpt")
        guarded.after_save_checkpoint(callback)
    guarded.finalize("success")
    assert given == handed


def test_a_logger_that_always_fails_changes_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = tiny_config(tmp_path)
    code = """
from lightning.pytorch.loggers import CSVLogger

class Broken(CSVLogger):
    def log_metrics(self, *_, **__):
        raise OSError("disk full")
    log_hyperparams = save = finalize = after_save_checkpoint = log_metrics
"""
    (tmp_path / "broken_logger.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.warns(UserWarning, match=r"Broken cannot log \(OSError: disk full\)"):
        assert fit(config, "--trainer.logger={class_path: broken_logger.Broken, init_args: {save_dir: x}}") == 0
    assert {"metrics.csv", "best.ckpt", "last.ckpt", "panel.txt"} <= {path.name for path in Path("runs/tiny").iterdir()}
