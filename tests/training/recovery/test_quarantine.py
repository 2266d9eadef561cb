"""One bad file never ends a run: what cannot be used is left out, named and counted."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from corpus import Corpus, build
from figures import figures

from velm import cli

pytestmark = pytest.mark.filterwarnings("ignore")

CONFIG: dict[str, Any] = {
    "model": {
        "image_encoder": {"name": "cnn", "dim": 8},
        "text_encoder": {"name": "rnn", "dim": 8},
        "losses": {"contrastive": {}},
    },
    "data": {"image_size": 16, "batch_size": 64, "max_bad": 0.03},
    "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 1},
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return build(tmp_path_factory.mktemp("corpus") / "faulty", good=2000, bad_samples=True)


def fit(folder: Path, corpus: Corpus, *arguments: str) -> int:
    (folder / "run.yaml").write_text(yaml.safe_dump(CONFIG), encoding="utf-8")
    dataset = f"--data.dataset={{name: csv, path: {corpus.table}, image_id_column: null}}"
    return cli.main(["fit", "--config", "run.yaml", dataset, *arguments])


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "runs/run/quarantine.jsonl").read_text("utf-8").splitlines()]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_over_every_fault_ends_and_names_each(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(corpus.bad) >= 40
    assert fit(tmp_path, corpus, f"--data.num_workers={workers}", "--trainer.max_epochs=2") == 0
    found = rows(tmp_path)
    assert {row["path"] for row in found} == set(corpus.bad)
    assert len(found) == len(corpus.bad)
    assert all(row.keys() == {"path", "cause", "step"} and row["cause"] for row in found)
    assert any(row["step"] > 0 for row in found)


def test_a_run_that_goes_on_names_nothing_twice(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert fit(tmp_path, corpus) == 0
    with Path("runs/run/quarantine.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"path": "half a li')  # killed while it wrote
    assert fit(tmp_path, corpus, "--ckpt_path=runs/run/last.ckpt", "--trainer.max_epochs=2") == 0
    lines = Path("runs/run/quarantine.jsonl").read_text("utf-8").replace('{"path": "half a li\n', "").splitlines()
    assert len(lines) == len(corpus.bad)
    assert {json.loads(line)["path"] for line in lines} == set(corpus.bad)


def test_too_much_that_opening_finds_ends_it_before_training(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert fit(tmp_path, corpus, "--data.max_bad=0.005") == 2
    message = capsys.readouterr().err
    assert "15 of 2,059 records of split 'train'" in message  # what is in the images is not known yet
    assert "max_bad is 0.5%" in message
    assert "All of them: runs/run/quarantine.jsonl" in message
    assert len(rows(tmp_path)) == 15
    assert not Path("runs/run/last.ckpt").exists()


def test_too_much_that_reading_finds_ends_it_and_saves_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    corpus = build(tmp_path / "corpus", good=180, bad_samples=False)
    for name in corpus.good[:180:20]:
        (corpus.folder / name).write_bytes(b"no image")
    assert fit(tmp_path, corpus, "--data.max_bad=0.02", "--data.batch_size=10") == 2
    message = capsys.readouterr().err
    assert "5 of 199 records of split 'train' (2.5%) cannot be used, max_bad is 2.0%" in message
    assert "or raise data.max_bad to leave them out" in message
    assert len(rows(tmp_path)) == 5
    assert Path("runs/run/last.ckpt").exists()
    assert fit(tmp_path, corpus, "--data.max_bad=0.1", "--data.batch_size=10", "--ckpt_path=runs/run/last.ckpt") == 0


def test_validation_leaves_out_what_it_cannot_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its figures are those of the split without them, even where a whole batch is gone."""
    monkeypatch.chdir(tmp_path)
    corpus = build(tmp_path / "corpus", good=40, bad_samples=False)
    lines = Path(corpus.table).read_text("utf-8").splitlines()
    Path(corpus.table).write_text("\n".join([*lines[:31], *(line[:-5] + "val" for line in lines[31:])]), "utf-8")
    broken = [line.split(",")[0] for line in lines[31:35]]
    options = ["--data.max_bad=0.5", "--data.eval_batch_size=4", "--data.batch_size=8"]
    for name in broken:
        (corpus.folder / name).write_bytes(b"")
    assert fit(tmp_path, corpus, *options) == 0
    assert {row["path"] for row in rows(tmp_path)} == {str(corpus.folder / name) for name in broken}
    kept = [
        line
        for number, line in enumerate(Path(corpus.table).read_text("utf-8").splitlines())
        if number not in range(31, 35)
    ]
    Path(corpus.table).write_text("\n".join(kept), "utf-8")
    assert fit(tmp_path, corpus, *options) == 0
    assert figures(Path("runs/run.1/metrics.csv")) == figures(Path("runs/run/metrics.csv"))


@pytest.mark.slow
def test_two_devices_write_one_quarantine(corpus: Corpus, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(CONFIG), encoding="utf-8")
    dataset = f"--data.dataset={{name: csv, path: {corpus.table}, image_id_column: null}}"
    command = [sys.executable, "-m", "velm.cli", "fit", "--config", "run.yaml", dataset, "--trainer.devices=2"]
    more = ["--trainer.log_every_n_steps=5", "--trainer.max_epochs=2"]
    done = subprocess.run([*command, *more], capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    found = rows(tmp_path)
    assert sorted(row["path"] for row in found) == sorted(corpus.bad)


def test_doctor_finds_every_fault_and_none_on_clean_data(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    clean = build(tmp_path / "clean", good=200, bad_samples=False)

    def examined(which: Corpus) -> list[dict[str, Any]]:
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(CONFIG), encoding="utf-8")
        dataset = f"--data.dataset={{name: csv, path: {which.table}, image_id_column: null}}"
        cli.main(["doctor", "--config", "run.yaml", dataset, "--trainer.max_epochs=30", "--json"])
        findings: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["findings"]
        return findings

    def named(findings: list[dict[str, Any]]) -> set[str]:
        values = [finding["value"] for finding in findings if isinstance(finding["value"], dict)]
        return {bad_sample["path"] for value in values for bad_sample in value.get("bad_samples", ())}

    found = examined(corpus)
    assert named(found) == set(corpus.bad)
    assert {f["severity"] for f in found if f["check"] in ("data", "images")} == {
        "ok",
        "info",
        "warning",
    }  # below max_bad
    found = examined(clean)
    assert named(found) == set()
    assert [f for f in found if f["severity"] in ("error", "warning")] == []


def test_shards_with_every_fault(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same images in tars: bad members of theirs, a name that leads out, and a shard that is cut off."""
    monkeypatch.chdir(tmp_path)
    unreadable = [name for name in corpus.bad.values() if (corpus.folder / name).is_file()]
    sound = [name for name in corpus.good if (corpus.folder / name).is_file()]
    bad = set()
    for number in range(8):
        with tarfile.open(f"{number}.tar", "w") as tar:
            for place, name in enumerate([*sound[number * 200 :][:200], *unreadable[number * 3 :][:3]]):
                for ending, content in {
                    Path(name).suffix: (corpus.folder / name).read_bytes(), ".txt": f"a dog {place % 7}".encode(),
                }.items():  # fmt: skip
                    add_member(tar, f"{place:04d}{ending}", content)
            bad |= {f"{number}.tar/{200 + i:04d}{Path(n).suffix}" for i, n in enumerate(unreadable[number * 3 :][:3])}
            if number == 1:
                bad_samples = {"empty": b" \n", "nul": b"a\0b", "latin1": b"caf\xe9", "long": b"word " * 20_000}
                for kind, text in bad_samples.items():
                    add_member(tar, f"{kind}.jpg", (corpus.folder / sound[0]).read_bytes())
                    add_member(tar, f"{kind}.txt", text)
                add_member(tar, "no_text.jpg", (corpus.folder / sound[0]).read_bytes())
                add_member(tar, "no_image.txt", b"a dog")
                add_member(tar, "../evil.jpg", (corpus.folder / sound[0]).read_bytes())
                bad |= {f"1.tar/{name}.jpg" for name in (*bad_samples, "no_text", "../evil")} | {"1.tar/no_image"}
    cut = Path("7.tar")
    cut.write_bytes(cut.read_bytes()[:-20_000])  # eight samples, and the bad ones behind them
    bad = {path for path in bad if not path.startswith("7.tar")} | {"7.tar"}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(CONFIG), encoding="utf-8")
    dataset = "--data.dataset={name: webdataset, train: '{0..7}.tar'}"
    assert cli.main(["fit", "--config", "run.yaml", dataset, "--trainer.max_epochs=3", "--data.max_bad=0.05"]) == 0
    assert {row["path"] for row in rows(tmp_path)} == bad


def add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
