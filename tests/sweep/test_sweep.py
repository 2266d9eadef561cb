"""A sweep of trials without processes: what is recorded, how it goes on after a stop, whom the pruner stops."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from fake_trials import FakeTrial, FakeTrials, Outcome, make_sweep, study_of

from velm.errors import ConfigError
from velm.sweep.results import results_of
from velm.sweep.storage import begin, open_record
from velm.sweep.sweep import lock_folder

pytest.importorskip("optuna", reason="pip install 'velm[sweep]'")

STUDY = "sampler: {name: tpe, seed: 1, startup: 3}\nparameters: {x: {low: 0.0, high: 1.0}, kind: {values: [a, b]}}"


def peak(parameters: dict[str, Any]) -> Outcome:
    """Three validations, the second of which is best; the best x is 0.3."""
    value = 1 - (parameters["x"] - 0.3) ** 2
    return [value - 0.1, value, value - 0.2], 0


def rows_of(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = results_of(folder, open_record(folder))["trials"]
    return rows


def test_every_trial_is_recorded_once_by_its_best_validation(tmp_path: Path) -> None:
    start = FakeTrials(peak)
    make_sweep(tmp_path / "s", study_of(tmp_path, STUDY), start, trials=8).run()
    results = results_of(tmp_path / "s", open_record(tmp_path / "s"))
    rows = results["trials"]
    assert [row["number"] for row in rows] == list(range(8))
    assert {row["state"] for row in rows} == {"complete"}
    assert [row["value"] for row in rows] == [max(peak(parameters)[0]) for _, parameters in start.started]
    assert results["best"]["value"] == max(max(peak(parameters)[0]) for _, parameters in start.started)
    assert {row["validations"] for row in rows} == {3}


def test_a_finished_sweep_starts_nothing_and_a_larger_one_goes_on(tmp_path: Path) -> None:
    study = study_of(tmp_path, STUDY)
    make_sweep(tmp_path / "s", study, FakeTrials(peak), trials=3).run()
    again, more = FakeTrials(peak), FakeTrials(peak)
    make_sweep(tmp_path / "s", study, again, trials=3).run()
    make_sweep(tmp_path / "s", study, more, trials=5).run()
    assert not again.started
    assert [number for number, _ in more.started] == [3, 4]


@pytest.mark.parametrize("sampler", ["{name: tpe, startup: 2}", "random", "{name: random, seed: 4}"])
def test_a_killed_sweep_ends_like_one_that_went_through(tmp_path: Path, sampler: str) -> None:
    """Its folder is copied at every poll of every trial: that is what SIGKILL leaves. Each copy is continued."""
    study = study_of(tmp_path, STUDY.replace("{name: tpe, seed: 1, startup: 3}", sampler))
    copies: list[Path] = []

    class Copying(FakeTrial):
        def poll(self) -> int | None:
            code = super().poll()
            if self.written == 2 and code is None:
                copies.append(tmp_path / f"copy{len(copies)}")
                shutil.copytree(tmp_path / "s", copies[-1])
            return code

    class Start(FakeTrials):
        def __call__(self, options: Any, folder: Path, env: Any) -> FakeTrial:
            trial = super().__call__(options, folder, env)
            return Copying(folder, (trial.values, trial.end))

    make_sweep(tmp_path / "s", study, Start(peak), trials=4).run()
    whole = [(row["value"], row["parameters"]) for row in rows_of(tmp_path / "s")]
    assert len(copies) == 4
    for number, copy in enumerate(copies):
        start = FakeTrials(peak)
        make_sweep(copy, study, start, trials=4).run()
        assert [n for n, _ in start.started] == list(range(number, 4)), "the unfinished trial and later ones"
        assert [(row["value"], row["parameters"]) for row in rows_of(copy)] == whole


def test_failed_trials_are_recorded_with_their_cause_and_the_others_go_on(tmp_path: Path) -> None:
    ends: list[Outcome] = [([0.1], 1), ([0.2], -9), ([float("nan")], 0), ([0.4], 0), ([], 143)]
    start = FakeTrials(lambda parameters: ends[len(start.started) - 1])
    make_sweep(tmp_path / "s", study_of(tmp_path, STUDY), start, trials=5).run()
    rows = rows_of(tmp_path / "s")
    assert [row["state"] for row in rows] == ["failed", "failed", "failed", "complete", "failed"]
    assert rows[0]["cause"] == "exit code 1: the last line"
    assert rows[0]["log"] == ["first", "the last line"]
    assert rows[1]["cause"] == "killed by SIGKILL (lack of memory?): the last line"
    assert rows[2]["cause"] == "metrics.csv has no finite val/score"


def test_a_config_that_is_wrong_starts_no_process(tmp_path: Path) -> None:
    def check(options: Any) -> None:
        if "--kind=a" in options:
            raise ConfigError("dim 100 is not divisible by heads 8")

    start = FakeTrials(peak)
    study = study_of(tmp_path, "sampler: grid\nparameters: {x: {values: [0.1]}, kind: {values: [a, b]}}")
    make_sweep(tmp_path / "s", study, start, trials=9, check=check).run()
    first, second = rows_of(tmp_path / "s")
    assert first["cause"] == "the config is wrong: dim 100 is not divisible by heads 8"
    assert second["state"] == "complete"
    assert len(start.started) == 1


def test_a_grid_visits_each_point_once_whatever_the_number_of_trials(tmp_path: Path) -> None:
    study = study_of(tmp_path, "sampler: grid\nparameters: {x: {values: [0.1, 0.2, 0.3]}, kind: {values: [a, b]}}")
    start = FakeTrials(peak)
    for trials in (2, 4, 100):
        make_sweep(tmp_path / "s", study, start, trials=trials).run()
    points = [(parameters["x"], parameters["kind"]) for _, parameters in start.started]
    assert sorted(points) == [(x, kind) for x in (0.1, 0.2, 0.3) for kind in ("a", "b")]


def test_the_pruner_stops_a_trial_below_the_median(tmp_path: Path) -> None:
    """Five validations each; the third trial is worse than the median of the first two at every one."""
    curves = [[0.5] * 5, [0.6] * 5, [0.1] * 5, [0.7] * 5]
    start = FakeTrials(lambda parameters: (curves[len(start.started) - 1], 0))
    study = study_of(tmp_path, f"{STUDY}\npruner: {{name: median, startup: 2, warmup: 2}}")
    make_sweep(tmp_path / "s", study, start, trials=4).run()
    rows = rows_of(tmp_path / "s")
    assert [row["state"] for row in rows] == ["complete", "complete", "pruned", "complete"]
    assert rows[2]["validations"] == 3, "two to warm up"


def test_the_pruner_knows_the_direction(tmp_path: Path) -> None:
    curves = [[0.5] * 5, [0.4] * 5, [0.9] * 5]
    start = FakeTrials(lambda parameters: (curves[len(start.started) - 1], 0))
    text = f"{STUDY}\ndirection: minimize\npruner: {{name: median, startup: 1, warmup: 0}}"
    make_sweep(tmp_path / "s", study_of(tmp_path, text), start, trials=3).run()
    results = results_of(tmp_path / "s", open_record(tmp_path / "s"))
    assert [row["state"] for row in results["trials"]] == ["complete", "complete", "pruned"]
    assert results["best"]["number"] == 1


def test_hyperband_stops_some(tmp_path: Path) -> None:
    start = FakeTrials(lambda parameters: ([parameters["x"] * step for step in range(1, 10)], 0))
    study = study_of(tmp_path, f"{STUDY}\npruner: {{name: hyperband, max: 9}}")
    make_sweep(tmp_path / "s", study, start, trials=12).run()
    states = [row["state"] for row in rows_of(tmp_path / "s")]
    assert set(states) == {"complete", "pruned"}


def test_an_interrupt_ends_the_running_trials_and_the_next_start_continues_them(tmp_path: Path) -> None:
    class Interrupting(FakeTrials):
        def __call__(self, options: Any, folder: Path, env: Any) -> FakeTrial:
            if len(self.started) == 3:
                raise KeyboardInterrupt
            return super().__call__(options, folder, env)

    study = study_of(tmp_path, STUDY)
    first = Interrupting(peak)
    with pytest.raises(KeyboardInterrupt):
        make_sweep(tmp_path / "s", study, first, trials=6, jobs=2).run()
    before = rows_of(tmp_path / "s")
    unfinished = [row["number"] for row in before if row["state"] == "unfinished"]
    assert len(unfinished) == 2, "one that ran, and the one that was about to"
    second = FakeTrials(peak)
    make_sweep(tmp_path / "s", study, second, trials=6).run()
    rows = rows_of(tmp_path / "s")
    assert [row["state"] for row in rows] == ["complete"] * 6
    assert [number for number, _ in second.started][:2] == unfinished
    assert [rows[n]["parameters"] for n in unfinished] == [before[n]["parameters"] for n in unfinished]


def test_jobs_run_at_a_time_and_share_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    start = FakeTrials(peak)
    sweep = make_sweep(tmp_path / "s", study_of(tmp_path, STUDY), start, trials=7, jobs=3, cores=8)
    most = 0

    def watch(options: Any) -> None:
        nonlocal most
        most = max(most, len(sweep.running))

    sweep.check = watch
    sweep.run()
    assert most == 2, "two run while the third is checked"
    assert len(rows_of(tmp_path / "s")) == 7
    assert {env["OMP_NUM_THREADS"] for env in start.environments} == {"2"}


def test_other_parameters_or_another_config_are_refused(tmp_path: Path) -> None:
    study = study_of(tmp_path, STUDY)
    begin(tmp_path / "s", study, {"model": {"dim": 8}, "config": ["a.yaml"]})
    begin(tmp_path / "s", study, {"model": {"dim": 8}, "config": ["b.yaml"]})
    with pytest.raises(ConfigError, match=r"holds a sweep with other options: fit\.model\.dim 8 -> 9\. .*--output"):
        begin(tmp_path / "s", study, {"model": {"dim": 9}})
    wider = study_of(tmp_path, STUDY.replace("high: 1.0", "high: 2.0"))
    with pytest.raises(ConfigError, match=r"parameters\.x FloatDistribution\(high=1\.0"):
        begin(tmp_path / "s", wider, {"model": {"dim": 8}})


def test_one_sweep_at_a_time_in_a_folder(tmp_path: Path) -> None:
    with lock_folder(tmp_path / "s"), pytest.raises(ConfigError, match="is used by another sweep"):
        lock_folder(tmp_path / "s").__enter__()
    with lock_folder(tmp_path / "s"):
        pass


def test_a_folder_without_a_sweep_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"There is no sweep in .*: it has no study\.journal"):
        open_record(tmp_path)
