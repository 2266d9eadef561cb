"""A config, its data and its run in other folders than the working one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image
from tiny_run import TINY, fit

from velm import cli

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """project/exp/own.yaml, with its data and a plugin beside it; the working folder is above."""
    folder = tmp_path / "project/exp"
    (folder / "images").mkdir(parents=True)
    rows = ["image,no,y,007"]
    for number in range(12):
        Image.new("RGB", (32, 32), (20 * number, 99, 0)).save(folder / f"images/{number}.png")
        split = ("train", "train", "val", "test")[number % 4]
        rows.append(f"images/{number}.png,a thing number {number},{split},{number:03}")
    (folder / "captions.csv").write_text("\n".join(rows) + "\n")
    (folder / "own_part.py").write_text(
        "import velm\nfrom velm.encoders.rnn import RNNEncoder\n\n\n"
        "@velm.text_encoders.register('own_rnn')\nclass Own(RNNEncoder):\n    pass\n"
    )
    columns = {"image_column": "image", "text_column": "no", "split_column": "y", "image_id_column": "007"}
    own = {**TINY, "data": {**TINY["data"], "batch_size": 2, "dataset": {"name": "csv", "path": "captions.csv"}}}
    own = yaml.safe_dump({**own, "plugins": ["own_part.py"]}).replace("name: rnn", "name: own_rnn")
    plain = "\n".join(f"    {name}: {column}" for name, column in columns.items())
    (folder / "own.yaml").write_text(own.replace("    path: captions.csv", f"    path: captions.csv\n{plain}"))
    monkeypatch.chdir(tmp_path)
    return Path("project/exp/own.yaml")


def test_data_is_found_beside_the_config_and_from_a_run_that_was_moved(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "text_column: no\n" in config.read_text()
    assert fit(config, "--trainer.max_steps=1", "--trainer.default_root_dir=project/runs/own") == 0
    assert "captions.csv is project/exp/captions.csv" in capsys.readouterr().err
    saved = yaml.safe_load(Path("project/runs/own/config.yaml").read_text())["data"]["dataset"]
    assert (saved["path"], saved["text_column"], saved["image_id_column"]) == (
        "project/exp/captions.csv", "no", "007")  # fmt: skip
    checkpoint, options = "project/runs/own/last.ckpt", ["--output", "~/out", "--split", "val"]
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert cli.main(["evaluate", f"../{checkpoint}", *options]) == 0
    assert (tmp_path / "home/out/metrics.json").is_file()
    shutil.copytree(tmp_path / "project", tmp_path / "moved/project")
    shutil.rmtree(tmp_path / "project/exp")
    plugin = f"--plugins={tmp_path}/moved/project/exp/own_part.py"
    assert cli.main(["evaluate", f"../moved/{checkpoint}", *options, plugin]) == 0, "project/exp, below moved/"
    shutil.rmtree(tmp_path / "moved/project/exp/images")
    (tmp_path / "moved/project/exp/captions.csv").unlink()
    capsys.readouterr()
    assert cli.main(["evaluate", f"../moved/{checkpoint}", *options, plugin]) == 2
    message = capsys.readouterr().err
    assert "looked in" in message
    assert "--data.dataset.path=..." in message


def test_data_that_is_nowhere_says_where_was_looked(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(config, "--data.dataset.path=absent.csv") == 2
    message = capsys.readouterr().err
    assert all(
        text in message for text in ("Paths start from the current folder", "project/exp", "--data.dataset.path")
    )
