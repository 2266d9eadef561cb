"""The table, best.yaml and report.html of a sweep."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_trials import FakeTrials, Outcome, make_sweep, study_of

from velm.sweep.page import write_page
from velm.sweep.results import results_of, table, write_best
from velm.sweep.storage import open_record

pytest.importorskip("optuna", reason="pip install 'velm[sweep]'")

STUDY = """
sampler: random
parameters:
  model.x: {low: 1e-3, high: 1.0, log: true}
  model.part: {values: [{name: a}, "<b>", null]}
"""


def outcome(parameters: dict[str, Any]) -> Outcome:
    """Better for a larger x; a failure for one below 0.01."""
    return [parameters["model.x"]], int(parameters["model.x"] < 0.01)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("sweep")
    make_sweep(folder, study_of(folder, STUDY), FakeTrials(outcome), trials=12).run()
    return results_of(folder, open_record(folder))


def test_the_table_begins_with_the_best_and_names_causes(results: dict[str, Any]) -> None:
    head, *lines = table(results).splitlines()
    assert head.split() == ["trial", "state", "val/score", "minutes", "x", "part"]
    values = [float(line.split()[2]) for line in lines if " complete " in line]
    assert values == sorted(values, reverse=True)
    assert int(lines[0].split()[0]) == results["best"]["number"]
    failed = [line for line in lines if " failed " in line]
    assert failed
    assert all(line.endswith("exit code 1: the last line") for line in failed)
    assert lines[-1].startswith("importance: ")


def test_the_parameter_that_decides_is_the_important_one(results: dict[str, Any]) -> None:
    importance = results["importance"]
    assert importance["model.x"] > importance["model.part"]
    assert sum(importance.values()) == pytest.approx(1)


def test_best_yaml_is_the_config_of_the_best_trial_in_no_folder(results: dict[str, Any]) -> None:
    path = write_best(Path(results["folder"]), results)
    assert path is not None
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert config["model"]["model.x"] == pytest.approx(results["best"]["value"])
    assert config["trainer"] == {"default_root_dir": None}
    assert config["ckpt_path"] is None, "of a trial that was continued"
    assert f"velm fit --config {path}" in path.read_text(encoding="utf-8")


def test_without_a_complete_trial_there_is_no_best(tmp_path: Path) -> None:
    make_sweep(tmp_path, study_of(tmp_path, STUDY), FakeTrials(lambda _: ([], 1)), trials=2).run()
    results = results_of(tmp_path, open_record(tmp_path))
    assert results["best"] is None
    assert write_best(tmp_path, results) is None
    assert table(results).count("failed") == 2
    assert "<svg" not in write_page(tmp_path, results).read_text(encoding="utf-8")


def test_the_page_draws_each_parameter_and_needs_nothing_else(results: dict[str, Any]) -> None:
    page = write_page(Path(results["folder"]), results).read_text(encoding="utf-8")
    assert page.count("<svg") == 3
    assert "http" not in page.replace("http-equiv", "")
    assert "<b>" not in page.split("</header>")[1], "values are text"
    shown = sum(row["value"] is not None for row in results["trials"])
    assert page.count('<circle class="mark line0"') == 3 * shown
    assert len(re.findall("<tr>", page)) == 1 + len(results["trials"])
