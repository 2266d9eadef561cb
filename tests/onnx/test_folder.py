"""Half folders, changed files and missing packages are refused by name."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from velm import onnx
from velm.errors import CheckpointError, MissingPackageError
from velm.onnx.folder import CONFIG, DecoderConfig, OnnxConfig, read_folder, seal_folder


def config(**changes: Any) -> OnnxConfig:
    decoder = DecoderConfig(["memory_0"], ["past_0"], 1, 2, [0, 1, 3], 12)
    values = {
        "parts": {"image_encoder": "cnn", "decoder": "transformer"}, "outputs": {"image": ["features"]},
        "embed_dim": 8, "max_length": 16, "aligned": False, "memory": ["image"], "decoder": decoder,
        "logit_scale": None, "logit_bias": None, "tokenization": "auto",
    }  # fmt: skip
    return OnnxConfig(**{**values, **changes})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole folder but for the content of the graphs."""
    for name in ("image.onnx", "start.onnx", "step.onnx"):
        (tmp_path / name).write_bytes(b"a graph")
    (tmp_path / "velm_tokenizer.json").write_text(json.dumps({"name": "byte", "state": {}}))
    (tmp_path / "transform.json").write_text(json.dumps({"image_size": 8, "resize": "crop"}))
    config().write(tmp_path)
    seal_folder(tmp_path)
    return tmp_path


def test_the_config_is_read_as_it_was_written(folder: Path) -> None:
    assert read_folder(folder) == config()
    (folder / "README.md").write_text("may be edited")
    assert read_folder(folder).graphs == ["image", "start", "step"]


@pytest.mark.parametrize("name", ["step.onnx", "sha256.json", "velm_tokenizer.json"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=rf"lacks .*{name}.*: it was not copied or downloaded whole"):
        onnx.load(folder)


def test_a_changed_file_is_named(folder: Path) -> None:
    (folder / "image.onnx").write_bytes(b"another graph")
    with pytest.raises(CheckpointError, match=r"image.onnx was changed after it was written: its sha256 is"):
        onnx.load(folder)


def test_other_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is no folder of `velm export --format onnx`: it has no config"):
        onnx.load(tmp_path / "nowhere")
    entry = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**entry, "format": 9}))
    with pytest.raises(CheckpointError, match="in layout 9; this is VELM"):
        onnx.load(folder)
    (folder / CONFIG).write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(CheckpointError, match="json of something else"):
        onnx.load(folder)
    (folder / CONFIG).write_text("{")
    with pytest.raises(CheckpointError, match="is no JSON"):
        onnx.load(folder)


def test_onnxruntime_is_named_where_it_is_missing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'velm\[onnx\]'"):
        onnx.load(folder)
