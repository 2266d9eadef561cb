from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tiny import csv_table

from velm import cli
from velm.registry import datasets


def test_a_dataset_becomes_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec, out = yaml.safe_dump(csv_table(tmp_path)), str(tmp_path / "pack")
    assert cli.main(["pack", "--dataset", spec, "--output", out, "--shard_size", "5", "--workers", "1"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("train  9 samples in 2 shards, 0.0 MB")
    assert printed[-1] == f"Read it: dataset: {{name: webdataset, path: {out}}}"
    assert len(datasets.build(yaml.safe_load(printed[-1].partition("dataset: ")[2])).split("train")) == 9


def test_splits_that_are_not_there_are_told_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = yaml.safe_dump({**csv_table(tmp_path), "split_column": None})
    assert cli.main(["pack", "--dataset", spec, "--output", str(tmp_path / "pack"), "--workers", "1"]) == 0
    captured = capsys.readouterr()
    assert "velm pack: the split 'val' is left out: " in captured.err
    assert "the split 'test' is left out: " in captured.err
    assert "train  11 samples" in captured.out


def test_splits_that_are_named_must_be_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = yaml.safe_dump(csv_table(tmp_path))
    assert cli.main(["pack", "--dataset", spec, "--output", str(tmp_path / "pack"), "--splits", "train,dev"]) == 2
    assert "no rows of split 'dev'" in capsys.readouterr().err


def test_what_is_wrong_is_a_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = ["--output", str(tmp_path / "pack")]
    for spec, message in (
        ("{name: [", "The value of --dataset is no YAML"),
        ("{path: a.csv}", "a mapping with a 'name'"),
        ("csvv", "Did you mean 'csv'"),
        (yaml.safe_dump({**csv_table(tmp_path), "splits": dict.fromkeys(("train", "val", "test"), "x")}),
         "none of the splits train, val, test"),
    ):  # fmt: skip
        assert cli.main(["pack", "--dataset", spec, *output]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "pack").exists()


def test_help_imports_nothing_heavy() -> None:
    code = "import sys\nfrom velm import cli\ntry:\n    cli.main(['pack', '--help'])\nexcept SystemExit:\n    pass\n"
    heavy = "{'torch', 'pyarrow', 'numpy', 'lightning', 'datasets'}"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}assert not {heavy} & set(sys.modules)"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "usage: velm pack" in done.stdout
