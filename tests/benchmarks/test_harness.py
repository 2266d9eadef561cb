"""Turns, disturbed measurements, ratios, what is written, and measurements in real processes."""

from __future__ import annotations

import json
import math
import mmap
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks.harness import child, load
from benchmarks.harness.load import Watch, tree
from benchmarks.harness.memory import Peak
from benchmarks.harness.report import Outcome, calm_note, draw, markdown, results, write
from benchmarks.harness.shares import FLOOR, kind, shares
from benchmarks.harness.turns import TRIES, Failed, Measured, in_a_process, take_turns
from benchmarks.harness.workload import Agreement, Run, Settings, Workload, require
from benchmarks.workloads import all_workloads, chosen

LINUX = pytest.mark.skipif(not Path("/proc/stat").exists(), reason="the load is read from /proc")


def toy(**changes) -> Workload:
    fields = {
        "name": "toy",
        "title": "counting",
        "unit": "numbers",
        "systems": {"velm": lambda settings: Run(lambda: 8), "peer": lambda settings: Run(lambda: 4)},
        "against": {"peer": "velm"},
        "prove": lambda settings: [Agreement("sum", 1.0, 1.0, "exact")],
    }
    return Workload(**(fields | changes))


def found(seconds: float, others: float | None = 0.0) -> dict:
    return {"seconds": seconds, "units": 8, "extra_mb": 10.0, "others": others}


def test_systems_take_turns() -> None:
    order = []
    take_turns(toy(), lambda system: order.append(system) or found(1.0), 3, say=lambda line: None)
    assert order == ["velm", "peer"] * 3


def test_a_disturbed_measurement_is_done_again_and_the_calmest_counts() -> None:
    given = iter([found(9.0, 1.5), found(2.0, 0.1), found(1.0), found(7.0, 0.9), found(6.0, 0.5), found(8.0, 0.7)])
    lines: list[str] = []
    measured = take_turns(toy(), lambda system: next(given), 1, say=lines.append)
    assert measured["velm"].seconds == [2.0]  # the second try was calm
    assert (measured["velm"].redone, measured["velm"].disturbed) == (1, 0)
    assert measured["peer"].seconds == [1.0]
    worst = take_turns(toy(systems={"velm": None}), lambda system: next(given), 1, say=lines.append)["velm"]
    assert (worst.seconds, worst.redone, worst.disturbed) == ([6.0], TRIES - 1, 1)
    assert "others 0.50 cores" in lines[-1]


def test_where_the_load_is_not_known_nothing_is_done_again() -> None:
    measured = take_turns(toy(), lambda system: found(1.0, None), 2, say=lambda line: None)["velm"]
    assert (len(measured.seconds), measured.redone, measured.disturbed) == (2, 0, 0)
    assert math.isnan(measured.metrics()["others_cores"])


@pytest.fixture
def outcome() -> Outcome:
    measured = {
        "velm": Measured([1.0, 3.0, 2.0], 8, [30.0, 10.0, 20.0], [0.0, 0.1, 0.0]),
        "peer": Measured([4.0, 5.0, 6.0], 4, [40.0] * 3, [0.0, 0.9, 0.0]),
    }
    return Outcome(toy(), [Agreement("loss", 1.5, 1.5, "float64")], measured, {FLOOR: 0.3, "norms": 0.1})


def test_ratios_are_of_units_a_second_and_medians(outcome: Outcome) -> None:
    told = results([outcome])["toy"]
    assert (told["velm"]["median_s"], told["velm"]["per_s"], told["velm"]["extra_mb"]) == (2.0, 4.0, 20.0)
    assert told["ratio"] == {"peer": pytest.approx(4.0 / 0.8)}
    assert told["memory_ratio"] == {"peer": 0.5}
    assert told["proof"][0]["what"] == "loss"


def test_the_table_says_what_was_measured_and_disturbed(outcome: Outcome) -> None:
    text = markdown([outcome], "A machine.")
    for said in ("A machine.", "| peer | 5.000 | 4.000 to 6.000 | 0.8 | 40 | 5.00 x as fast | 0.90 (1 disturbed) |"):
        assert said in text
    assert "- loss: 1.5 and 1.5 (float64)" in text
    assert "75% of it is the floor" in text
    assert "1 measurements were disturbed" in str(calm_note([outcome]))
    assert calm_note([]) is None


def test_what_is_written_is_there_even_if_a_workload_failed(outcome: Outcome, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pip install 'velm[bench]'")
    write([outcome, Outcome(toy(name="broken"), failed="no such file")], tmp_path / "new", "A machine.")
    told = json.loads((tmp_path / "new/results.json").read_text())
    assert told["broken"] == {"failed": "no such file"}
    assert "no such file" in (tmp_path / "new/results.md").read_text()
    assert "<svg" in (tmp_path / "new/results.svg").read_text()
    draw([], tmp_path / "none.svg")
    assert not (tmp_path / "none.svg").exists()


def test_every_workload_is_complete() -> None:
    known = all_workloads()
    assert {"clip_step", "coca_step", "rnn_step", "generate", "data", "contrastive", "retrieval"} <= set(known)
    for workload in known.values():
        assert set(workload.against) | set(workload.against.values()) <= set(workload.systems), workload.name
        assert workload.profiled is None or workload.profiled in workload.systems


def test_a_name_stands_for_its_variants() -> None:
    assert [workload.name for workload in chosen(["generate"])] == ["generate", "generate_beams5"]
    assert [workload.name for workload in chosen(["generate_beams5", "clip_step"])] == ["generate_beams5", "clip_step"]
    assert len(chosen([])) == len(all_workloads())
    with pytest.raises(ValueError, match=r"There is no workload 'speed'; there are .*clip_step"):
        chosen(["speed"])


def test_the_command_line_lists_and_refuses(capsys) -> None:
    assert command.main(["--list"]) == 0
    assert "coca_step" in capsys.readouterr().out
    assert command.main(["nothing"]) == 2
    assert "There is no workload 'nothing'" in capsys.readouterr().err


def test_the_command_goes_on_after_a_failure(monkeypatch, tmp_path: Path, capsys) -> None:
    pytest.importorskip("matplotlib", reason="pip install 'velm[bench]'")
    names = iter(["a", "b"])

    def run(workload, settings, repeats):
        return Outcome(toy(name=next(names)), failed="it broke")

    monkeypatch.setattr(command, "run", run)
    assert command.main(["generate", "--output", str(tmp_path)]) == 1
    assert set(json.loads((tmp_path / "results.json").read_text())) == {"a", "b"}
    assert "it broke" in capsys.readouterr().out


def test_a_failed_process_says_why(monkeypatch) -> None:
    with pytest.raises(Failed, match=r"measure of toy, velm: exit status 1(.|\n)*KeyError: 'toy'"):
        in_a_process("measure", toy(), "velm", Settings())
    failing = toy(prove=lambda settings: 1 / 0)

    def process(task, workload, system, settings):
        raise Failed("division by zero")

    monkeypatch.setattr(command, "in_a_process", process)
    assert command.run(failing, Settings(), None).failed == "division by zero"


def test_a_missing_peer_is_a_line_that_says_what_to_install() -> None:
    with pytest.raises(SystemExit, match=r"The peers are missing \('no_such_peer'\): pip install '.\[bench\]'"):
        require("no_such_peer")


def test_steps_that_are_not_counted_come_first() -> None:
    log: list[str] = []
    run = Run(lambda: log.append("step") or 6, prepare=lambda: log.append("prepare"), warm=2, steps=3)
    told = child.measure(toy(systems={"velm": lambda settings: run}), "velm", Settings())
    assert log == ["prepare"] + ["step"] * 5
    assert told["units"] == 6
    assert told["seconds"] >= 0
    asked = Run(lambda: 1, extra_mb=lambda: 123.0)
    assert child.measure(toy(systems={"velm": lambda _: asked}), "velm", Settings())["extra_mb"] == 123.0


def test_settings_travel() -> None:
    settings = Settings("32", 3, "cuda", True)
    assert Settings.loads(settings.dumps()) == settings


@LINUX
def test_what_others_take_is_not_what_this_process_takes() -> None:
    before = load._tree_seconds()
    watch, start = Watch(), time.perf_counter()
    while time.perf_counter() - start < 0.3:
        pass
    assert load._tree_seconds() - before > 0.05  # this process's own work is told from that of others
    watch.busy = watch.busy or 0.0
    watch.own -= 1000.0
    assert watch.others() == 0.0  # never below
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(5)"]) as process:
        assert process.pid in tree(os.getpid())
        process.kill()


@LINUX
def test_a_peak_is_seen_after_it_has_gone() -> None:
    peak = Peak("cpu")
    with mmap.mmap(-1, 64 * 2**20) as block:  # the allocator may keep freed memory, and take it again unseen
        block[:: mmap.PAGESIZE] = bytes(len(range(0, len(block), mmap.PAGESIZE)))
    assert 60 < peak.extra_mb() < 200


def test_operations_are_of_a_kind() -> None:
    assert kind("aten::addmm") == kind("aten::bmm") == FLOOR
    assert kind("aten::native_layer_norm_backward") == "norms"
    assert kind("aten::_fused_adamw_") == "optimizer"
    assert kind("enumerate(DataLoader)#_SingleProcessDataLoaderIter.__next__") == "reading data"
    assert kind("aten::threshold_backward") == "activations"
    assert kind("aten::avg_pool2d") == "pooling"
    assert kind("autograd::engine") == "the rest"
    a = torch.randn(300, 300)
    told = shares(lambda: (a @ a).softmax(1))
    assert told[FLOOR] > 0
    assert "activations" in told


@pytest.mark.slow
def test_a_workload_from_end_to_end(tmp_path: Path) -> None:
    for module in ("open_clip", "matplotlib"):
        pytest.importorskip(module, reason="pip install 'velm[bench]'")
    root = Path(__file__).parents[2]
    line = [sys.executable, "-m", "benchmarks", "contrastive_4096", "--repeats", "1", "--output", str(tmp_path)]
    done = subprocess.run(line, cwd=root, capture_output=True, text=True, check=True)
    told = json.loads((tmp_path / "results.json").read_text())["contrastive_4096"]
    assert told["velm"]["median_s"] > 0
    assert told["ratio"]["open_clip"] > 0
    assert told["open_clip"]["extra_mb"] > told["velm"]["extra_mb"]
    assert "value: relative difference" in done.stdout
