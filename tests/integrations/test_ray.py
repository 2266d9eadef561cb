"""The callables of Ray Data: columns in, columns out, row by row; and, slow, two workers of a local cluster."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.dataset
import pytest
from tiny import image_bytes

from velm.errors import PipelineError
from velm.integrations.ray import CaptionImages, EmbedImages
from velm.pipeline import load

ROOT = Path(__file__).parents[2]


@pytest.fixture
def paths(tmp_path):
    for number in range(4):
        (tmp_path / f"{number}.jpg").write_bytes(image_bytes(number))
    (tmp_path / "2.jpg").write_bytes(b"no image")
    return [str(tmp_path / f"{number}.jpg") for number in range(4)]


def test_captions_of_paths_bytes_and_arrays(write_checkpoint, paths):
    checkpoint = write_checkpoint()
    expected = load(checkpoint).caption([path for path in paths if "2.jpg" not in path])
    contents = [Path(path).read_bytes() for path in paths]
    mapped = CaptionImages(checkpoint, device="cpu", batch_size=3)
    for batch in (
        {"path": np.array(paths), "n": np.arange(4)},
        {"bytes": np.array(contents, dtype=object), "n": np.arange(4)},
        {"image": np.array([{"bytes": each, "path": None} for each in contents]), "n": np.arange(4)},
        {"image": np.array([{"bytes": None, "path": each} for each in paths]), "n": np.arange(4)},
    ):
        out = mapped(batch)
        assert set(out) == {*batch, "caption", "score", "error"}
        assert out["n"].tolist() == [0, 1, 2, 3]
        assert [each for each in out["caption"] if each is not None] == expected
        assert [each is None for each in out["caption"]] == [False, False, True, False]
        assert np.isnan(out["score"]).tolist() == [False, False, True, False]
        assert [each is None for each in out["error"]] == [True, True, False, True]
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 40, 3), dtype=np.uint8)
    assert mapped({"image": pixels})["caption"].tolist() == load(checkpoint).caption(list(pixels))


def test_several_captions(write_checkpoint, paths):
    options = {"num_beams": 3, "num_return": 2, "max_length": 5}
    mapped = CaptionImages(write_checkpoint(), device="cpu", column="file", **options)
    out = mapped({"file": np.array(paths)})
    assert [each and len(each) for each in out["captions"]] == [2, 2, None, 2]
    assert out["captions"][0][0] == out["caption"][0]
    assert out["scores"][0][0] == out["score"][0]


def test_embeddings(write_checkpoint, paths):
    checkpoint = write_checkpoint()
    out = EmbedImages(checkpoint, device="cpu")({"path": np.array(paths)})
    assert out["embedding"].shape == (4, 8)
    assert np.isnan(out["embedding"]).all(axis=1).tolist() == [False, False, True, False]
    expected = load(checkpoint).embed_images([paths[0], paths[1], paths[3]])
    assert np.allclose(out["embedding"][[0, 1, 3]], expected, atol=1e-6)
    assert "2.jpg" in out["error"][2]


def test_a_batch_without_images(write_checkpoint):
    checkpoint = write_checkpoint()
    with pytest.raises(PipelineError, match=r"no column any of image, bytes, path, but url. Name one: column="):
        EmbedImages(checkpoint, device="cpu")({"url": np.array(["a"])})
    with pytest.raises(PipelineError, match="no column 'file', but path"):
        EmbedImages(checkpoint, device="cpu", column="file")({"path": np.array(["a"])})


@pytest.mark.slow
def test_the_example_on_two_workers(write_checkpoint, paths, tmp_path):
    pytest.importorskip("ray", reason="pip install 'velm[ray]'")
    checkpoint, output = write_checkpoint(), tmp_path / "captions"
    command = [sys.executable, "examples/ray/caption.py", str(checkpoint), *paths, "--output", str(output)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = sorted(pyarrow.dataset.dataset(output).to_table().to_pylist(), key=lambda row: row["path"])
    assert [row["path"] for row in found] == paths
    assert [row["error"] is None for row in found] == [True, True, False, True]
    good = [row for row in found if row["error"] is None]
    assert [row["caption"] for row in good] == load(checkpoint).caption([row["path"] for row in good])
