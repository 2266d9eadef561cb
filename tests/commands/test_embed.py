"""`velm embed` and `velm caption --output`: Parquet below a folder, exit codes and messages."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pyarrow.dataset
import pytest
from PIL import Image

from velm.cli import main as velm
from velm.pipeline import load


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for number, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (3, 32, 40, 3), dtype=np.uint8)):
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    return tmp_path / "images"


def table(output):
    return pyarrow.dataset.dataset(output).to_table()


def test_embeddings_of_a_folder(write_checkpoint, folder, tmp_path, capsys):
    checkpoint, output = str(write_checkpoint()), str(tmp_path / "out")
    assert velm(["embed", checkpoint, str(folder), "--output", output, "--dtype", "float32"]) == 0
    assert capsys.readouterr().out.endswith(f"3 images in 1 parts of {output}\n")
    expected = load(checkpoint).embed_images([str(folder / f"{number}.png") for number in range(3)])
    assert np.allclose(table(output)["embedding"].to_pylist(), expected.numpy(), atol=1e-6)
    assert table(output).column_names == ["part", "row", "id", "embedding", "error"]


def test_the_exit_code_tells_of_bad_images(write_checkpoint, folder, tmp_path, capsys):
    (folder / "1.png").write_bytes(b"no image")
    arguments = ["caption", str(write_checkpoint()), str(folder), "--output", str(tmp_path / "out"), "--num_beams", "2"]
    for _ in range(2):  # the second time, all parts are finished
        assert velm(arguments) == 1
        assert "velm caption: 1 images could not be read; the column `error` says why." in capsys.readouterr().err
    found = table(tmp_path / "out").to_pylist()
    assert [row["captions"] is None for row in found] == [False, True, False]
    assert "1.png" in found[1]["error"]


def test_a_dataset(write_checkpoint, tmp_path):
    config = "{name: shapes, test_size: 4, image_size: 32}"
    options = ["--split", "test", "--part_size", "3", "--output", str(tmp_path / "out")]
    assert velm(["embed", str(write_checkpoint()), config, *options]) == 0
    assert [(row["part"], row["row"]) for row in table(tmp_path / "out").to_pylist()] == [
        (0, 0),
        (0, 1),
        (0, 2),
        (1, 0),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shard", "3/2"], "--shard 3/2 does not exist: the shards of 2 are 0/2 to 1/2."),
        (["--json"], "--json prints, --output writes Parquet"),
        (["--text", "a", "--text", "b"], "--text is given 2 times; with --output it takes one text"),
        (["--text", "a"], "The decoder reads no text"),
        (["--split", "test"], "--split test is of a dataset or a pack"),
    ],
)
def test_options_that_cannot_be_are_told(write_checkpoint, folder, tmp_path, capsys, arguments, message):
    arguments = ["caption", str(write_checkpoint()), str(folder), "--output", str(tmp_path / "out"), *arguments]
    assert velm(arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""
    assert not (tmp_path / "out").exists()


def test_bulk_options_need_an_output(write_checkpoint, folder, capsys):
    for option in (["--shard", "0/2"], ["--devices", "2"], ["--part_size", "3"], ["--verify"], ["--split", "test"]):
        assert velm(["caption", str(write_checkpoint()), str(folder), *option]) == 2
        assert f"{option[0]} is of a run that writes Parquet: give --output DIR" in capsys.readouterr().err


def test_an_empty_folder_and_a_full_one(write_checkpoint, folder, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    checkpoint = str(write_checkpoint())
    assert velm(["embed", checkpoint, str(tmp_path / "empty"), "--output", str(tmp_path / "out")]) == 2
    assert "empty' has no images at all" in capsys.readouterr().err
    assert velm(["embed", checkpoint, str(folder), "--output", str(folder)]) == 2
    assert "is not empty and no bulk run wrote it" in capsys.readouterr().err


def test_captions_that_are_printed_import_no_lightning(write_checkpoint, folder):
    code = (
        "import sys\nfrom velm import cli\n"
        f"assert cli.main(['caption', {str(write_checkpoint())!r}, {str(folder)!r}]) == 0\n"
        "assert not {name for name in sys.modules if name.split('.')[0] in ('lightning', 'ray')}\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
