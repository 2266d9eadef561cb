"""`velm export --format torch`: programs say what the checkpoint says, for any batch and any length."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import velm
from velm import cli
from velm.checkpoint import read_checkpoint
from velm.encoders.rnn import RNNEncoder
from velm.errors import CheckpointError, ExportError
from velm.exports import graphs
from velm.exports.padded_rnn import PaddedRNN
from velm.exports.torch_programs import write_torch
from velm.exports.torch_reader import open_torch

TEXTS = ["a red circle", "a small blue square left of a large green ring", "ring"]


def pictures(count: int = 3) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (count, 40, 50, 3), dtype=np.uint8))


def written(path: Path, folder: Path) -> tuple[velm.Pipeline, Path]:
    """The pipeline of a checkpoint, and its programs, without the fresh process."""
    folder.mkdir()
    pipeline = velm.load(path)
    write_torch(read_checkpoint(path), pipeline, folder)
    return pipeline, folder


def require_same(pipeline: velm.Pipeline, folder: Path) -> None:
    """Embeddings of several batches and lengths, and captions."""
    programs = open_torch(folder)
    images = pictures()
    if pipeline.aligned:
        for size in (1, 3):
            found = programs.embed_images(images, batch_size=size)
            np.testing.assert_allclose(found, pipeline.embed_images(images), atol=1e-5)
            found = programs.embed_texts(TEXTS, batch_size=size)
            np.testing.assert_allclose(found, pipeline.embed_texts(TEXTS), atol=1e-5)
    if pipeline.writes:
        given = (images, TEXTS)[: len(pipeline.model.memory_sources)]
        assert programs.caption(*given) == pipeline.caption(*given)
        assert programs.caption(*given, batch_size=1, num_beams=2) == pipeline.caption(*given, num_beams=2)


@pytest.mark.slow
def test_a_folder_of_programs(
    write_checkpoint: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, folder = write_checkpoint(), tmp_path / "programs"
    assert cli.main(["export", str(path), "--format", "torch", "--output", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "is exported as programs of torch.export" in printed
    assert "log_probs " in printed
    require_same(velm.load(path), folder)
    image = torch.export.load(folder / "image.pt2")
    assert all("decoder" not in name and "text" not in name for name in image.state_dict)
    embeds = image.module()(torch.zeros(5, 3, 32, 32, dtype=torch.uint8))[0]
    assert embeds.shape == (5, 8)
    assert "torch.export.load" in (folder / "README.md").read_text(encoding="utf-8")
    (folder / "step.pt2").unlink()
    with pytest.raises(CheckpointError, match=r"lacks step\.pt2"):
        open_torch(folder)
    (folder / "config.json").write_text(json.dumps({"export": "onnx"}))
    with pytest.raises(CheckpointError, match=r"no folder of `velm export --format torch`"):
        open_torch(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"text_encoder": {"name": "transformer", "dim": 16, "depth": 1, "heads": 2}, "decoder": {"name": "rnn"},
         "memory": ["image", "text"]},
        {"image_encoder": {"name": "cnn", "dim": 16}, "text_encoder": {"name": "decoder"},
         "decoder": {"name": "transformer", "dim": 16, "depth": 2, "heads": 2, "unimodal_depth": 1}},
        {"image_encoder": {"name": "torchvision/mobilenet_v2", "features": "features.3"}, "decoder": None,
         "losses": {"contrastive": {}}},
    ],
    ids=["two memories", "shared blocks", "mobilenet"],
)  # fmt: skip
def test_parts_of_other_kinds(write_checkpoint: Callable[..., Path], tmp_path: Path, changes: dict[str, Any]) -> None:
    require_same(*written(write_checkpoint(**changes), tmp_path / "programs"))


def test_a_decoder_without_tensors_is_refused(
    write_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "tensor_state", lambda decoder: None)
    with pytest.raises(ExportError, match=r"no programs of torch\.export: the state of the decoder 'transformer'"):
        written(write_checkpoint(), tmp_path / "programs")


def test_a_part_that_cannot_be_followed_is_named(
    write_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_checkpoint()

    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("data-dependent branch\nat line 3")

    monkeypatch.setattr(torch.export, "export", fails)
    content = read_checkpoint(path)
    with pytest.raises(ExportError, match=r"image encoder 'vit' cannot be exported to a program of torch\.export: "
                       r"RuntimeError: data-dependent branch\. --format velm takes it"):  # fmt: skip
        write_torch(content, velm.load(path), tmp_path)


@pytest.mark.parametrize("cell", ["gru", "lstm", "tanh"])
@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "layers": 2}, {"pooling": "mean"}], ids=str)
def test_a_padded_rnn_is_the_packed_one(cell: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    packed = RNNEncoder(vocab_size=20, dim=8, cell=cell, **options).eval()  # type: ignore[arg-type]
    padded = PaddedRNN(packed, 12)
    tokens = torch.randint(1, 20, (4, 9))
    mask = torch.arange(9) < torch.tensor([[9], [4], [1], [6]])
    expected, found = packed(tokens, mask), padded(tokens, mask)
    torch.testing.assert_close(found.pooled, expected.pooled)
    torch.testing.assert_close(found.features, expected.features)
    longer = padded(torch.nn.functional.pad(tokens, (0, 3)), torch.nn.functional.pad(mask, (0, 3)))
    torch.testing.assert_close(longer.pooled, expected.pooled)
