"""The scripts behind docs/performance.md: how cost grows, and where a run's time goes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import growth, profile_fit
from benchmarks.harness.shares import FLOOR

ROOT = Path(__file__).parents[2]


def test_a_profile_tells_what_is_no_operation_and_the_floor() -> None:
    told = profile_fit.table(2.0, {FLOOR: 0.5, "convolutions": 0.5, "norms": 0.25})
    assert "| not in operations | 0.7500 | 38% |" in told
    assert "The floor is 50% of it." in told


def test_every_axis_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pip install 'velm[bench]'")
    rows = {
        axis: [
            {"value": value, "system": system, "seconds": 1.0, "extra_mb": 2.0}
            for value in values
            for system in growth.SYSTEMS
        ]
        for axis, values in growth.AXES.items()
    }
    processes = [{"value": n, "seconds": 1.0, "megabytes": 1.0} for n in growth.PROCESSES]
    growth.draw({**rows, "processes": processes}, tmp_path / "growth.svg")
    assert "<svg" in (tmp_path / "growth.svg").read_text()
    assert set(growth.AXES) == set(growth.LABELS) == set(growth.USUAL)


@pytest.mark.slow
@pytest.mark.parametrize("system", growth.SYSTEMS)
def test_a_point_is_measured_in_a_process_of_its_own(system: str) -> None:
    pytest.importorskip("open_clip", reason="pip install 'velm[bench]'")
    sizes = {"batch": 2, "side": 64, "length": 8, "vocabulary": 1000}
    found = growth.apart({"system": system, "threads": 1, **sizes})
    assert found["seconds"] > 0
    assert found["extra_mb"] > 0


@pytest.mark.slow
def test_a_run_is_profiled() -> None:
    line = [sys.executable, "-m", "benchmarks.profile_fit", "--config", "configs/quickstart.yaml"]
    done = subprocess.run([*line, "--data.batch_size=8"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "| matrix products |" in done.stdout
    assert "The floor is" in done.stdout
