"""Faults put into runs: what is lost is at most the steps since the last checkpoint, and nothing hangs.

    pytest tests/training/recovery/test_faults_injected.py -m 'slow or not slow' -s

prints the table of docs/results.md. A run has 14 steps and writes last.ckpt after every second.
"""

from __future__ import annotations

import csv
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from injected import STEPS, ended, faults, start, two_ranks, write_config

from velm.errors import TerminatedError

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

Told = Callable[..., None]
SIGKILL, SIGTERM = int(signal.SIGKILL), int(signal.SIGTERM)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    write_config(folder)
    return folder


@pytest.fixture(scope="module")
def table() -> Iterator[list[str]]:
    rows: list[str] = []
    yield rows
    print("\n| fault | what happened | steps lost | seconds until it ended |\n| --- | --- | --- | --- |")
    print("\n".join(rows))


@pytest.fixture
def told(table: list[str]) -> Told:
    """A row of the table; `seconds` is how long the faulty run took from its start, imports not included."""

    def write(fault: str, happened: str, lost: int, seconds: float, most: int = 2) -> None:
        assert lost <= most  # steps since the last checkpoint that could be written
        table.append(f"| {fault} | {happened} | {lost} | {seconds:.0f} |")

    return write


def run(folder: Path, name: str, *options: str, within: float = 120.0) -> tuple[int, str, float]:
    """Exit code, what was said, seconds of a run on one device."""
    output, begun = folder / f"{name}.txt", time.monotonic()
    process = start(folder, output, f"--trainer.default_root_dir={name}", *options)
    code = ended(process, within)
    return code, output.read_text(encoding="utf-8"), time.monotonic() - begun


def pair(folder: Path, name: str, *options: str, within: float = 120.0) -> tuple[list[int], list[str], float]:
    """The same of a run on two devices."""
    begun = time.monotonic()
    codes = [ended(process, within) for process in two_ranks(folder, name, *options)]
    return codes, [(folder / f"{name}.{rank}.txt").read_text(encoding="utf-8") for rank in range(2)], (
        time.monotonic() - begun
    )  # fmt: skip


def steps_of(run: Path, name: str = "last.ckpt") -> int:
    return int(torch.load(run / name, weights_only=True)["global_step"])


def losses(run: Path, name: str = "loss") -> list[tuple[int, str]]:
    rows = csv.DictReader((run / "metrics.csv").read_text(encoding="utf-8").splitlines())
    return [(int(row["step"]), row[f"train/{name}"]) for row in rows if row.get(f"train/{name}")]


def assert_same(run: Path, whole: Path) -> None:
    """The same losses, weights and optimizer, bit for bit."""
    assert losses(run) == losses(whole)
    found, wanted = (torch.load(path / "last.ckpt", weights_only=True) for path in (run, whole))
    assert found["global_step"] == wanted["global_step"] == STEPS
    for key in ("state_dict", "current_model_state"):
        assert all(torch.equal(found[key][name], wanted[key][name]) for name in wanted[key])
    for index, state in wanted["optimizer_states"][0]["state"].items():
        assert all(torch.equal(found["optimizer_states"][0]["state"][index][name], state[name]) for name in state)


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """A run that nothing happens to."""
    assert run(folder, "whole")[0] == 0
    return folder / "whole"


@pytest.fixture(scope="module")
def whole_pair(folder: Path) -> Path:
    assert pair(folder, "whole_pair")[0] == [0, 0]
    return folder / "whole_pair"


@pytest.mark.parametrize(
    ("fault", "name", "options", "kept"),
    [
        ("SIGKILL between two checkpoints", "Signal", {"step": 5}, 4),
        ("SIGKILL in the middle of writing last.ckpt", "KilledWhileWriting", {"step": 5}, 4),
        ("SIGKILL with last.ckpt written, not yet in its place", "KilledWhileWriting", {"step": 5, "at": -1}, 4),
        ("SIGTERM in a step", "Signal", {"step": 4, "number": SIGTERM}, 5),
    ],
)
def test_a_run_that_is_ended_goes_on(
    fault: str, name: str, options: dict, kept: int, folder: Path, whole: Path, told: Told
) -> None:
    place = f"{name}_{len(fault)}"
    code, said, seconds = run(folder, place, faults({name: options}))
    assert code == (TerminatedError.exit_code if "TERM" in fault else -SIGKILL)
    assert ("the current step was finished and saved" in said) == ("TERM" in fault)
    assert steps_of(folder / place) == kept
    assert run(folder, place, "--resume")[0] == 0
    assert not list((folder / place).glob("*.part"))
    assert_same(folder / place, whole)
    begun = 6 if name == "KilledWhileWriting" else 5
    told(fault, f"exit {code}; `last.ckpt` whole; `--resume` ends with the same bits", begun - kept, seconds)


def test_a_full_disk_at_one_save(folder: Path, whole: Path, told: Told) -> None:
    full = faults({"FullDisk": {"step": 3, "until": 5, "files": ["last.ckpt.part"]}})
    code, said, seconds = run(folder, "full_once", full)
    assert code == 0
    assert said.count("could not be written ([Errno 28] No space left on device)") == 1
    assert_same(folder / "full_once", whole)
    told("disk full at one save, room at the next", "warned, trained on, saved at the next", 0, seconds)


def test_a_disk_that_stays_full(folder: Path, told: Told) -> None:
    code, said, seconds = run(folder, "full", faults({"FullDisk": {"step": 9, "files": ["last.ckpt.part"]}}))
    assert code == 1
    assert re.search(r"the last save of these failed: \S*full/last.ckpt", said)
    assert "with --resume" in said
    assert steps_of(folder / "full") == 8
    (folder / "full" / "last.ckpt.part").unlink(missing_ok=True)
    assert run(folder, "full", "--resume")[0] == 0
    assert steps_of(folder / "full") == STEPS
    told("disk full from step 9 to the end",
         "warned at each save, exit 1 that names the files; the old one whole; `--resume` does the rest again",
         STEPS - 8, seconds, most=STEPS - 8)  # fmt: skip


def test_a_full_disk_for_figures(folder: Path, whole: Path, told: Told) -> None:
    full = faults({"FullDisk": {"step": 3, "files": ["metrics.csv", "panel.txt"]}})
    code, said, seconds = run(folder, "full_figures", full)
    assert code == 0
    assert "metrics.csv cannot be written" in said
    found, wanted = (torch.load(path / "last.ckpt", weights_only=True) for path in (folder / "full_figures", whole))
    assert all(torch.equal(found["state_dict"][n], wanted["state_dict"][n]) for n in wanted["state_dict"])
    told("disk full for `metrics.csv` and `panel.txt`", "warned once; weights the same bits; rows lost", 0, seconds)


@pytest.mark.parametrize(("fault", "size"), [("cut short", 5000), ("empty", 0)])
def test_a_damaged_checkpoint(fault: str, size: int, folder: Path, whole: Path, told: Told) -> None:
    name = f"damaged_{size}"
    assert run(folder, name, "--save_last_k=2", faults({"Signal": {"step": 5}}))[0] == -SIGKILL
    last = folder / name / "last.ckpt"
    data = last.read_bytes()
    last.unlink()  # step_4.ckpt is the same file
    last.write_bytes(data[:size])
    code, said, seconds = run(folder, name, "--resume")
    assert code == 2
    assert f"{name}/last.ckpt is damaged or cut short" in said
    assert f"The newest complete one beside it is of step 4: --ckpt_path={name}/step_4.ckpt" in said
    assert run(folder, name, f"--ckpt_path={name}/step_4.ckpt")[0] == 0
    assert_same(folder / name, whole)
    told(f"`last.ckpt` {fault}", "exit 2, names the newest whole one (`--save_last_k=2`); goes on from it", 1, seconds)


@pytest.mark.parametrize("number", [SIGTERM, SIGKILL])
def test_a_signal_to_one_of_two_ranks(number: int, folder: Path, whole_pair: Path, told: Told) -> None:
    name = f"rank_signal_{number}"
    codes, said, seconds = pair(folder, name, faults({"Signal": {"step": 5, "rank": 1, "number": number}}), within=60)
    if number == SIGTERM:
        assert codes == [TerminatedError.exit_code] * 2
        assert steps_of(folder / name) == 6
    else:
        assert codes == [1, -SIGKILL]
        assert re.search(r"Rank 1 \(\S+, process \d+\) disappeared without an error: it was killed", said[0])
        assert steps_of(folder / name) == 4
    assert pair(folder, name, "--resume")[0] == [0, 0]
    assert_same(folder / name, whole_pair)
    if number == SIGTERM:
        told("SIGTERM to one of two ranks", "both end after the same step, saved, exit 143; same bits", 0, seconds)
    else:
        told(
            "SIGKILL to one of two ranks, no launcher", "the other names it, exit 1; `--resume`: same bits", 1, seconds
        )


def test_a_rank_that_fails(folder: Path, whole_pair: Path, told: Told) -> None:
    codes, said, seconds = pair(folder, "rank_fails", faults({"Failure": {"step": 5, "rank": 1}}), within=60)
    assert codes == [1, 1]
    assert re.search(r"Rank 1 \(\S+, process \d+\) failed: ZeroDivisionError: the moon was full. Rank 0 stops", said[0])
    assert "Traceback" in said[1]
    assert pair(folder, "rank_fails", "--resume")[0] == [0, 0]
    assert_same(folder / "rank_fails", whole_pair)
    told("an error in one of two ranks", "the other names rank and error, exit 1; `--resume`: same bits", 1, seconds)


def test_a_rank_that_hangs(folder: Path, told: Told) -> None:
    begun = time.monotonic()
    processes = two_ranks(folder, "rank_hangs", "--process_group_timeout=8", faults({"Hang": {"step": 5, "rank": 1}}))
    try:
        assert ended(processes[0], within=60) == 1
    finally:
        processes[1].kill()
    said = (folder / "rank_hangs.0.txt").read_text(encoding="utf-8")
    assert re.search(r"no answer from: Rank 1 \(\S+, process \d+\)", said)
    assert steps_of(folder / "rank_hangs") == 4
    told(
        "one of two ranks hangs (`--process_group_timeout=8`)",
        "the other names it, exit 1",
        1,
        time.monotonic() - begun,
    )


def test_a_rank_killed_under_torchrun(folder: Path, whole_pair: Path, told: Told) -> None:
    """It goes on by itself, from the last checkpoint, to the same final loss."""
    kill = faults({"Signal": {"step": 5, "rank": 1}})
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--max_restarts=1", "--standalone",
               "-m", "velm", "fit", "--config", "run.yaml", "--trainer.default_root_dir=torchrun",
               "--trainer.devices=2", "--trainer.strategy=ddp", "--data.batch_size=2", kill]  # fmt: skip
    root, support = Path(__file__).parents[3], Path(__file__).parents[2] / "support"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{root}:{support}"}
    begun = time.monotonic()
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = "disappeared without an error: it crashed, and its output says why, or it was killed"  # by rank 0, which
    assert said in done.stdout + done.stderr  # cannot tell: torchrun writes crashes to the output
    assert not (folder / "torchrun.1").exists()
    assert_same(folder / "torchrun", whole_pair)
    assert losses(folder / "torchrun")[-1] == losses(whole_pair)[-1]
    told("SIGKILL to one of two ranks under `torchrun --max_restarts=1`", "goes on by itself; same losses, same bits",
         1, time.monotonic() - begun)  # fmt: skip


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_one_step_that_is_not_finite(what: str, folder: Path, told: Told) -> None:
    name = f"poison_{what}"
    both = faults({"Snapshots": {}}, {"Poison": {"steps": [5], "what": what}})
    code, said, seconds = run(folder, name, both)
    assert code == 0
    assert "1 in a row of at most 10, 1 in total" in said
    kept = torch.load(folder / name / "snapshots.pt", weights_only=True)
    assert all(torch.equal(kept[5][key], kept[6][key]) for key in kept[5])
    assert not all(torch.equal(kept[4][key], kept[5][key]) for key in kept[5])
    batch = torch.load(folder / name / "nonfinite" / "step_5_rank_0.pt", weights_only=True)
    assert len(batch["images"]) == len(batch["tokens"]) == 4
    rows = csv.DictReader((folder / name / "metrics.csv").read_text(encoding="utf-8").splitlines())
    assert [row["train/skipped_steps"] for row in rows if row.get("train/loss")] == ["0.0"] * 5 + ["1.0"] * 9
    cause = "NaN in the loss of one step" if what == "loss" else "inf in the gradient of one step"
    told(cause, "left out: weights, optimizer, average, statistics the same bits; batch kept", 0, seconds)


def test_too_many_steps_that_are_not_finite(folder: Path, told: Told) -> None:
    poison = faults({"Poison": {"steps": list(range(5, 14))}})
    code, said, seconds = run(folder, "poisoned", poison, "--max_nonfinite_steps=3")
    assert code == 1
    assert "NaN or inf in 3 steps in a row, up to step 8: training cannot continue" in said
    assert steps_of(folder / "poisoned") == 8
    assert len(list((folder / "poisoned" / "nonfinite").iterdir())) == 3
    weights = torch.load(folder / "poisoned" / "last.ckpt", weights_only=True)["current_model_state"]
    assert all(bool(torch.isfinite(value).all()) for value in weights.values())
    told("NaN from step 5 on (`--max_nonfinite_steps=3`)", "three left out, exit 1; sound weights saved", 0, seconds)


def test_nan_on_one_of_two_ranks(folder: Path, told: Told) -> None:
    codes, said, seconds = pair(folder, "poisoned_rank", faults({"Poison": {"steps": [5], "rank": 1}}))
    assert codes == [0, 0]
    assert all("1 in a row of at most 10, 1 in total" in text for text in said)
    assert {file.name for file in (folder / "poisoned_rank" / "nonfinite").iterdir()} == {
        "step_5_rank_0.pt",
        "step_5_rank_1.pt",
    }
    told("NaN on one of two ranks", "both leave the step out", 0, seconds)


def test_a_worker_killed_once(folder: Path, whole: Path, told: Told) -> None:
    killed = faults({"WorkerKilled": {"step": 3}})
    code, said, seconds = run(folder, "worker", "--data.num_workers=1", killed)
    assert code == 0
    assert "The workers are restarted and continue with the next batch (1 of 3" in said
    assert_same(folder / "worker", whole)
    told("a loader's worker killed", "started anew by itself; same bits", 0, seconds)


def test_a_worker_killed_again_and_again(folder: Path, whole: Path, told: Told) -> None:
    killed = faults({"WorkerKilled": {"step": 1, "times": 5}})
    code, said, seconds = run(folder, "workers", "--data.num_workers=1", killed)
    assert code == 1
    assert "data.num_workers below 1" in said
    assert "The finished steps are in workers/last.ckpt" in said
    last = steps_of(folder / "workers")
    assert run(folder, "workers", "--resume")[0] == 0
    assert_same(folder / "workers", whole)
    told(
        "a loader's worker killed step after step",
        f"exit 1 at step {last} with a hint; finished steps saved",
        0,
        seconds,
    )


def test_a_second_run_in_the_folder(folder: Path, whole: Path, told: Told) -> None:
    first = start(folder, folder / "first.txt", "--trainer.default_root_dir=shared", faults({"Hang": {"step": 5}}))
    try:
        until = time.monotonic() + 60
        while not (folder / "shared" / "last.ckpt").exists() and time.monotonic() < until:
            time.sleep(0.05)
        before = (folder / "shared" / "config.yaml").read_bytes()
        code, said, seconds = run(folder, "shared", "--trainer.max_epochs=1", within=30)
        assert code == 2
        assert f"shared is used by another run (process {first.pid} on " in said
        assert (folder / "shared" / "config.yaml").read_bytes() == before
        assert not (folder / "shared.1").exists()
    finally:
        first.kill()
        first.join()
    told("a second run in a run's folder", "refused, exit 2, names the first; nothing touched", 0, seconds)
    assert (folder / "shared" / "run.lock").is_file()  # of the killed run
    code, said, seconds = run(folder, "shared", "--resume")
    assert code == 0
    assert_same(folder / "shared", whole)
    told("the lock of a run that was killed", "taken over at once", 0, seconds)


@pytest.mark.parametrize("of", ["two", "one"])
def test_another_number_of_devices(of: str, folder: Path, told: Told) -> None:
    """The same global batch: the very same samples and, without what is drawn or normalised by rank, the same run."""
    name, whole_name = f"from_{of}", f"whole_{of}"
    still = ["--model.image_encoder.dropout=0", "--model.decoder.dropout=0", "--model.text_encoder.word_dropout=0",
             "--model.image_encoder.norm=group"]  # fmt: skip
    kill = faults({"Signal": {"step": 5, "rank": int(of == "two")}})
    if of == "two":
        assert pair(folder, whole_name, *still)[0] == [0, 0]
        assert pair(folder, name, *still, kill)[0] == [1, -SIGKILL]
        code, _, seconds = run(folder, name, *still, "--resume")
        assert code == 0
    else:
        assert run(folder, whole_name, *still)[0] == 0
        assert run(folder, name, *still, kill)[0] == -SIGKILL
        codes, _, seconds = pair(folder, name, *still, "--resume")
        assert codes == [0, 0]
    found, wanted = losses(folder / name, "contrastive"), losses(folder / whole_name, "contrastive")
    assert [step for step, _ in found] == [step for step, _ in wanted] == list(range(STEPS))
    assert [float(x) for _, x in found] == pytest.approx([float(x) for _, x in wanted], rel=1e-4)
    there = "2 devices x 2 to 1 x 4" if of == "two" else "1 device x 4 to 2 x 2"
    told(f"killed, and gone on from {there}", "the same samples and losses (1e-4)", 1, seconds)
