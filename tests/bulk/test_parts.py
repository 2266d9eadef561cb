"""The output folder: whole parts only, of one run only; full disks and folders that vanish are messages."""

from __future__ import annotations

import json
import resource
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pytest

from velm.bulk.parts import MANIFEST, Output
from velm.errors import DataError, RunFailedError

ABOUT = {
    "writes": "captions",
    "model": "ab12",
    "options": {"num_beams": 3},
    "input": {"kind": "files"},
    "part_size": 4,
    "parts": 3,
}
TABLE = pa.table({"row": pa.array([0, 1], pa.int32()), "error": pa.array([None, "bad"])})


@pytest.fixture
def output(tmp_path):
    return Output(tmp_path / "out", ABOUT)


def test_a_part_is_read_as_it_was_written(output):
    assert not output.state(1).finished
    output.write(1, TABLE, errors=1)
    for verify in (False, True):
        state = output.state(1, verify)
        assert (state.finished, state.errors, state.rows, state.broken) == (True, 1, 2, None)
    assert pa.dataset.dataset(output.folder).to_table().equals(TABLE)
    assert sorted(path.name for path in output.folder.iterdir()) == [MANIFEST, "part-00001.parquet"]
    assert Output(output.folder, ABOUT).state(1).finished


def test_the_manifest_of_another_run_is_refused(output):
    for name, value, message in (
        ("writes", "embeddings", 'captions of another command: there "captions", now "embeddings"'),
        ("model", "cd34", 'captions of another model: there "ab12", now "cd34"'),
        ("options", {"num_beams": 5}, r'captions of other options: there {"num_beams": 3}, now {"num_beams": 5}'),
        ("input", {"kind": "shards"}, "captions of another input"),
        ("part_size", 5, "captions of another part size: there 4, now 5"),
        ("parts", 4, "captions of another number of parts: there 3, now 4"),
    ):
        with pytest.raises(DataError, match=message):
            Output(output.folder, {**ABOUT, name: value})
    with pytest.raises(DataError, match="choose another folder, or delete this one"):
        Output(output.folder, {**ABOUT, "model": "cd34"})


def test_a_folder_of_something_else_is_refused(tmp_path, output):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    with pytest.raises(DataError, match=r"is not empty and no bulk run wrote it \(thesis.tex is there\)"):
        Output(tmp_path / "full", ABOUT)
    with pytest.raises(DataError, match=r"thesis.tex' cannot be the output: .*File exists"):
        Output(tmp_path / "full" / "thesis.tex", ABOUT)
    for content in ("{", "[]", "{}"):
        (output.folder / MANIFEST).write_text(content)
        with pytest.raises(DataError, match="was not written by a bulk run"):
            Output(output.folder, ABOUT)


def test_broken_parts_are_recognised(output):
    output.write(0, pa.table({"x": pa.array(np.random.default_rng(0).random(5000))}), errors=0)
    whole = output.path(0).read_bytes()
    for content in (b"", whole[:100], whole[: len(whole) // 2], whole[:-1]):
        output.path(0).write_bytes(content)
        assert output.state(0).broken
        assert not output.state(0).finished
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    output.path(0).write_bytes(flipped)
    assert output.state(0).finished  # by its footer
    assert "CRC" in str(output.state(0, verify=True).broken)
    pa.parquet.write_table(TABLE, output.path(0))
    assert output.state(0).broken


def test_a_part_of_another_run_is_not_finished(output, tmp_path):
    output.write(0, TABLE, errors=0)
    other = Output(tmp_path / "other", {**ABOUT, "model": "cd34"})
    shutil.copy(output.path(0), other.path(0))
    assert other.state(0).broken == "another run wrote it"


def test_a_full_disk_keeps_what_is_finished(output):
    output.write(0, TABLE, errors=0)
    large = pa.table({"x": pa.array(np.random.default_rng(0).random(100_000))})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # bytes, of any file: EFBIG, as ENOSPC on a disk
    try:
        with pytest.raises(
            RunFailedError, match=r"part-00001.parquet' cannot be written: File too large.*finished stay"
        ):
            output.write(1, large, errors=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert output.state(0).finished
    assert sorted(path.name for path in output.folder.iterdir()) == [MANIFEST, "part-00000.parquet"]
    output.write(1, large, errors=0)


def test_a_folder_that_vanished_is_not_made_again(output):
    shutil.rmtree(output.folder)
    with pytest.raises(RunFailedError, match="cannot be written: No such file or directory"):
        output.write(0, TABLE, errors=0)
    assert not output.folder.exists()


def test_leftovers_of_killed_processes_are_removed(output):
    for name in ("_part-00001.parquet.host.1", "_part-00002.parquet.host.1"):
        (output.folder / name).write_bytes(b"PAR1")
    output.write(0, TABLE, errors=0)
    assert pa.dataset.dataset(output.folder).to_table().equals(TABLE)  # readers skip them
    output.remove_leftovers(range(0, 2))
    assert sorted(path.name for path in output.folder.iterdir()) == [
        MANIFEST,
        "_part-00002.parquet.host.1",
        "part-00000.parquet",
    ]
    assert json.loads((output.folder / MANIFEST).read_text())["model"] == "ab12"
