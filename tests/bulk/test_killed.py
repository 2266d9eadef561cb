"""Two processes, one of them killed and started again: every row once, and as from an undisturbed run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import bulk as benchmark
from velm.cli import main as velm

ROOT = Path(__file__).parents[2]
SCENES = 2000


@pytest.mark.slow
@pytest.mark.parametrize("with_ray", [False, True], ids=["velm", "ray"])
def test_a_killed_process_and_ray(write_checkpoint, monkeypatch, with_ray):
    if with_ray:
        pytest.importorskip("ray", reason="pip install 'velm[ray]'")
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    options = ["--images", str(SCENES), "--part_size", "50", *([] if with_ray else ["--without_ray"])]
    found = benchmark.main([str(write_checkpoint()), *options])
    assert found["killed"]["exit code"] == -signal.SIGKILL
    assert 0 < found["killed"]["after parts"] < found["killed"]["of its parts"]
    assert found["exit codes"] == [0, 0]
    assert found["rows"] == found["distinct rows"] == SCENES
    assert found["ids in order"]
    assert found["bad rows"] == found["differences of the sample"] == 0
    if with_ray:
        assert found["ray: rows"] == found["ray: distinct rows"] == SCENES
        assert found["ray: differences"] == 0


@pytest.mark.slow
def test_a_killed_rank_ends_the_run_and_a_restart_completes_it(write_checkpoint, tmp_path, capsys):
    output = tmp_path / "out"
    config = "{name: shapes, train_size: 2000, image_size: 32}"
    arguments = ["embed", str(write_checkpoint()), config, "--split", "train", "--part_size", "20"]
    command = [sys.executable, "-m", "velm", *arguments, "--output", str(output), "--devices", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    while len(list(output.glob("part-*[13579].parquet"))) < 3:
        assert run.poll() is None
        time.sleep(0.01)
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    workers = [pid for pid in children if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]
    os.kill(int(workers[-1]), signal.SIGKILL)
    message = run.communicate()[1]
    assert run.returncode == 1
    assert "was killed (SIGKILL), and the others were stopped. The parts that are finished stay" in message
    before = {path: path.stat().st_mtime_ns for path in output.glob("part-*")}
    assert 3 <= len(before) < 100
    assert velm([*arguments, "--output", str(output)]) == 0
    assert all(path.stat().st_mtime_ns == time_ns for path, time_ns in before.items())
    assert "2,000 images in 100 parts" in capsys.readouterr().out
    assert velm([*arguments, "--output", str(tmp_path / "whole")]) == 0
    rows = [sorted(map(str, benchmark.read(folder))) for folder in (output, tmp_path / "whole")]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 2000
