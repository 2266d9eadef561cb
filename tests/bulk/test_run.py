"""Runs of parts: a restart changes nothing, shards make up the whole, bad images and vanished folders are told of."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.dataset
import pytest
from PIL import Image

from velm.bulk.ranks import Share
from velm.bulk.run import Job, run
from velm.errors import ConfigError, DataError, RunFailedError
from velm.pipeline import load

ALL = [(part, row) for part in range(4) for row in range(2)][:7]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for number, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (7, 32, 40, 3), dtype=np.uint8)):
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    return tmp_path / "images"


@pytest.fixture
def job(write_checkpoint, folder, tmp_path):
    def make(output="out", writes="captions", **changes):
        checkpoint = changes.pop("checkpoint", None) or str(write_checkpoint())
        return Job(checkpoint, (str(folder),), tmp_path / output, writes, part_size=2, **changes)

    return make


def rows(job):
    """All rows, in the order of the input."""
    table = pyarrow.dataset.dataset(job.output).to_table().sort_by([("part", "ascending"), ("row", "ascending")])
    return table.to_pylist()


def test_every_image_once_as_the_pipeline_captions_it(job, folder, capsys):
    whole = job()
    summary = run(whole)
    assert (summary.parts, summary.images, summary.errors, summary.finished_before) == (4, 7, 0, 0)
    found = rows(whole)
    assert [(row["part"], row["row"]) for row in found] == ALL
    assert [row["id"] for row in found] == [f"{number}.png" for number in range(7)]
    expected = load(whole.checkpoint).caption([str(folder / f"{number}.png") for number in range(7)])
    assert [row["captions"] for row in found] == [[caption] for caption in expected]
    assert "part-00003.parquet  1 images, 0 bad" in capsys.readouterr().out


def test_a_restart_writes_only_what_is_missing(job, capsys):
    whole = job(writes="embeddings")
    run(whole)
    before = rows(whole)
    (whole.output / "part-00001.parquet").unlink()
    (whole.output / "part-00002.parquet").write_bytes(b"PAR1")
    (whole.output / "_part-00001.parquet.host.1").write_bytes(b"PAR1")
    kept = (whole.output / "part-00000.parquet").stat().st_mtime_ns
    capsys.readouterr()
    summary = run(whole)
    captured = capsys.readouterr()
    assert (summary.parts, summary.finished_before, summary.images) == (4, 2, 7)
    assert [line.split()[0] for line in captured.out.splitlines()] == ["part-00001.parquet", "part-00002.parquet"]
    assert "part-00002.parquet is broken and is written again: " in captured.err
    assert rows(whole) == before
    assert (whole.output / "part-00000.parquet").stat().st_mtime_ns == kept
    assert not list(whole.output.glob("_part*"))


@pytest.mark.parametrize("options", [{}, {"temperature": 2.0, "top_k": 5}], ids=["greedy", "sampled"])
def test_shards_make_up_the_whole(job, options):
    whole, shared = job(options=options, seed=3), job("shared", options=options, seed=3)
    run(whole)
    for number in (1, 0):
        run(job("shared", options=options, seed=3, share=Share(number, 2)))
        assert len(list(shared.output.glob("part-*"))) == (2 if number else 4)
    assert rows(shared) == rows(whole)


def test_ranks_of_a_launcher_take_their_parts(job, monkeypatch):
    for name, value in {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "GROUP_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RANK", "1")
    assert run(job()).parts == 2
    assert [path.name for path in sorted(job().output.glob("part-*"))] == ["part-00001.parquet", "part-00003.parquet"]
    with pytest.raises(ConfigError, match="--devices 2: 2 processes were started by a launcher"):
        run(job(devices=2))


def test_bad_images_are_named_in_their_rows(job, folder, capsys):
    good = job()
    run(good)
    expected = rows(good)
    (folder / "3.png").write_bytes(b"no image")
    bad = job("bad")
    for before in (0, 4):
        summary = run(bad)
        assert (summary.errors, summary.finished_before) == (1, before)
    found = rows(bad)
    assert found[3]["captions"] is found[3]["scores"] is None
    assert "3.png" in found[3]["error"]
    assert [row["captions"] for row in found if not row["error"]] == [
        row["captions"] for row in expected if row["id"] != "3.png"
    ]
    assert "3.png" in capsys.readouterr().err


def test_an_input_that_vanishes_ends_the_run_and_finished_parts_stay(job, folder, monkeypatch):
    from velm.bulk.inputs import Files

    original = Files.part

    def part(self, number):
        if number == 2:
            shutil.rmtree(folder)
        return original(self, number)

    monkeypatch.setattr(Files, "part", part)
    with pytest.raises(RunFailedError, match=r"The folder '.*images' has vanished during the run.*finished stay"):
        run(job())
    assert len(list(job().output.glob("part-*"))) == 2


def test_another_model_or_option_is_refused(job, write_checkpoint):
    run(job())
    other = write_checkpoint("other.ckpt", embed_dim=16)
    for changes, message in (
        ({"checkpoint": str(other)}, "captions of another model"),
        ({"options": {"num_beams": 2}}, 'captions of other options: there {"num_beams": null}, now {"num_beams": 2}'),
        ({"writes": "embeddings"}, "captions of another command"),
        ({"precision": "bf16"}, "captions of other options"),
    ):
        with pytest.raises(DataError, match=message):
            run(job(**changes))
    with pytest.raises(ConfigError, match="--output s3:/bucket is a URL; write to a folder"):
        run(replace(job(), output=Path("s3://bucket")))
