"""The workloads that measure whole commands: what they run, what both sides read, what they say."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from benchmarks import photographs, processes
from benchmarks.harness.workload import OURS, Settings
from benchmarks.workloads import epoch, startup


@pytest.fixture
def flickr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder laid out like the photographs: 3 images to train on and one that is not, two captions each."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    rows = [
        (f"images/{n}.jpg", f"caption {k} of {n}", "val" if n == 1 else "train", str(n))
        for n in range(4)
        for k in (0, 1)
    ]
    with open(folder / "captions.csv", "w", newline="") as file:
        csv.writer(file).writerows([("image_path", "text", "split", "image_id"), *rows])
    monkeypatch.setenv(photographs.VARIABLE, str(folder))
    return folder


def test_rows_are_the_first_training_rows_each_once(flickr: Path, tmp_path: Path) -> None:
    written = photographs.write_rows(photographs.data_folder(), tmp_path / "rows.csv", 5)
    with open(tmp_path / "rows.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["image_path"], row["text"]) for row in rows] == written
    assert [row["text"] for row in rows] == [f"caption {k} of {n}" for n, k in ((0, 0), (0, 1), (2, 0), (2, 1), (3, 0))]
    assert all(Path(row["image_path"]).is_absolute() for row in rows)
    assert {row["split"] for row in rows} == {"train"}


def test_too_few_rows_are_named(flickr: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has 6 training rows, and 7 are asked for"):
        photographs.write_rows(flickr, tmp_path / "rows.csv", 7)


def test_without_photographs_it_says_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(photographs.VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"nowhere/captions.csv.*Set VELM_FLICKR8K to a folder"):
        photographs.data_folder()


def test_both_sides_are_given_the_same(tmp_path: Path) -> None:
    job = epoch.Job(tmp_path, 64, 1, Settings())
    ours = epoch.fit_config(job)
    command = epoch.open_clip_command(job)
    theirs = dict(zip(command[4::2], command[5::2], strict=True))
    model, data, trainer = ours["model"], ours["data"], ours["trainer"]
    assert data["dataset"]["path"] == theirs["--train-data"]
    assert str(data["batch_size"]) == theirs["--batch-size"]
    assert str(data["num_workers"]) == theirs["--workers"]
    assert str(model["optimizer"]["lr"]) == theirs["--lr"]
    assert str(model["optimizer"]["weight_decay"]) == theirs["--wd"]
    assert str(trainer["gradient_clip_val"]) == theirs["--grad-clip-norm"]
    assert str(trainer["log_every_n_steps"]) == theirs["--log-every-n-steps"]
    assert (trainer["precision"], theirs["--precision"]) == ("bf16-mixed", "amp_bf16")
    towers = epoch.open_clip_config()
    for mine, yours in ((model["image_encoder"], towers["vision_cfg"]), (model["text_encoder"], towers["text_cfg"])):
        assert (mine["dim"], mine["depth"]) == (yours["width"], yours["layers"])


@pytest.mark.parametrize(("precision", "words"), [("32", ("32-true", "fp32")), ("bf16", ("bf16-mixed", "amp_bf16"))])
def test_precision_reaches_both_sides(tmp_path: Path, precision: str, words: tuple[str, str]) -> None:
    job = epoch.Job(tmp_path, 64, 1, Settings(precision=precision))
    assert epoch.fit_config(job)["trainer"]["precision"] == words[0]
    assert words[1] in epoch.open_clip_command(job)


@pytest.mark.slow
def test_the_tokenizer_has_the_ids_of_clip(tmp_path: Path) -> None:
    pytest.importorskip("open_clip")
    from open_clip.tokenizer import SimpleTokenizer

    from velm.data.text.hf import HFTokenizer

    photographs.write_tokenizer(tmp_path)
    ours, theirs = HFTokenizer(model_name=str(tmp_path)), SimpleTokenizer()
    assert ours.vocab_size == theirs.vocab_size
    assert (ours.bos_id, ours.eos_id) == (theirs.sot_token_id, theirs.eot_token_id)
    for text in ("A dog's 12 tri-colored balls !", "two  men in Zürich .", "a woman ( left ) & a child"):
        assert ours.to_ids(text) == theirs.encode(text)


def test_fit_is_the_shipped_command_with_the_shipped_config() -> None:
    command = startup.fit_command("/somewhere")
    assert command[:5] == ["-m", "velm.cli", "fit", "--config", str(startup.QUICKSTART)]
    assert startup.QUICKSTART.is_file()


def test_every_workload_has_both_sides() -> None:
    for workload in (*startup.WORKLOADS, *epoch.WORKLOADS):
        assert set(workload.against) | {OURS} == set(workload.systems)


def test_a_command_is_run_in_its_folder(tmp_path: Path) -> None:
    code = "import os; print(os.getcwd(), os.environ['OMP_NUM_THREADS'])"
    assert processes.run(["-c", code], folder=tmp_path, threads=3).output.split() == [str(tmp_path), "3"]


def test_memory_of_a_short_command_is_its_own() -> None:
    small, large = (processes.peak_of(["-c", f"bytearray({size})"], threads=1) for size in (1, 60 * 2**20))
    assert small < 50  # this process has imported torch
    assert large - small == pytest.approx(60, abs=5)


def test_children_count_with_tree(tmp_path: Path) -> None:
    hold = "import time; x = bytearray(60_000_000); time.sleep(0.8)"
    start = f"subprocess.Popen([sys.executable, '-c', {hold!r}])"
    code = f"import subprocess, sys; [p.wait() for p in [{start}, {start}]]"
    assert processes.run(["-c", code], folder=tmp_path, threads=1, tree=True).peak_mb > 115


def test_what_fails_is_named(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"exit status 3\nlast words"):
        processes.run(["-c", "print('last words'); raise SystemExit(3)"], folder=tmp_path, threads=1)


@pytest.mark.slow
def test_lightning_by_hand_is_of_the_same_size() -> None:
    lines = {line.what: line for line in startup.prove(Settings())}
    assert lines["parameters"].ours == lines["parameters"].theirs > 10**6


@pytest.mark.slow
def test_both_sides_read_each_text_once_as_the_same_tokens() -> None:
    pytest.importorskip("open_clip_train")
    try:
        photographs.data_folder()
    except FileNotFoundError as absent:
        pytest.skip(str(absent))
    lines = {line.what: line for line in epoch.prove(Settings(precision="32"))}
    assert lines["samples"].ours == epoch.FEW
