"""`velm export --format onnx`: without torch the graphs say what the checkpoint says."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import velm
from velm import cli, registry
from velm.data.text.bpe import ByteTokenizer
from velm.encoders.base import ImageEncoder
from velm.errors import ConfigError, DataError, ExportError, MissingPackageError, PipelineError
from velm.exports import formats
from velm.exports.golden import Golden, compare
from velm.exports.onnx_int8 import quantize_folder
from velm.outputs import EncoderOutput

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

TEXTS = ["a red circle", "a small blue square left of a large green ring", "ring"]
WITHOUT_TORCH = """
import json, sys
sys.modules["torch"] = None
import numpy as np, velm.onnx
pipeline = velm.onnx.load(sys.argv[1])
images, texts = list(np.load(sys.argv[2])), json.loads(sys.argv[3])
said = {"captions": pipeline.caption(images), "scores": pipeline.score(images, texts).tolist()}
assert sys.modules["torch"] is None and not any(name.startswith("torch.") for name in sys.modules)
print(json.dumps(said))
"""


def pictures(count: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 40, 50, 3), dtype=np.uint8)


@pytest.fixture(scope="session")
def _kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("onnx") / "model"


@pytest.fixture
def exported(
    write_checkpoint: Callable[..., Path], _kept: Path, capsys: pytest.CaptureFixture[str]
) -> tuple[velm.Pipeline, Path]:
    """The pipeline of a checkpoint with a recurrent text encoder, and its folder, exported once."""
    path = write_checkpoint()
    if not _kept.exists():
        assert cli.main(["export", str(path), "--format", "onnx", "--output", str(_kept)]) == 0
        printed = capsys.readouterr().out
        assert "is exported as velm.onnx" in printed
        assert "image_embeds   largest difference" in printed
        assert "log_probs " in printed
    return velm.load(path), _kept


def test_the_runner_says_what_the_pipeline_says(exported: tuple[velm.Pipeline, Path]) -> None:
    pipeline, runner = exported[0], velm.onnx.load(exported[1], threads=1)
    images = list(pictures())
    np.testing.assert_allclose(runner.embed_images(images), pipeline.embed_images(images), atol=1e-5)
    np.testing.assert_allclose(runner.embed_texts(TEXTS), pipeline.embed_texts(TEXTS), atol=1e-5)
    np.testing.assert_allclose(runner.embed_texts(TEXTS, batch_size=1), pipeline.embed_texts(TEXTS), atol=1e-5)
    for kind in ("cosine", "logit", "probability"):
        found, expected = runner.score(images, TEXTS, kind=kind), pipeline.score(images, TEXTS, kind=kind)
        np.testing.assert_allclose(found, expected, atol=1e-4)
    assert runner.caption(images) == pipeline.caption(images)
    assert runner.caption(images, batch_size=1, max_length=4) == pipeline.caption(images, max_length=4)
    options = {"num_beams": 3, "num_return": 3, "length_penalty": 0.5}
    for found, expected in zip(
        runner.caption_candidates(images, **options), pipeline.caption_candidates(images, **options), strict=True
    ):
        assert [each.text for each in found] == [each.text for each in expected]
        assert [each.score for each in found] == pytest.approx([each.score for each in expected], abs=1e-4)
    assert runner.caption([]) == []
    assert runner.embed_images([]).shape == (0, 8)


def test_no_torch_is_imported(exported: tuple[velm.Pipeline, Path], tmp_path: Path) -> None:
    pipeline, folder = exported
    np.save(tmp_path / "images.npy", pictures())
    command = [sys.executable, "-c", WITHOUT_TORCH, str(folder), str(tmp_path / "images.npy"), json.dumps(TEXTS)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    said = json.loads(ran.stdout)
    assert said["captions"] == pipeline.caption(list(pictures()))
    np.testing.assert_allclose(said["scores"], pipeline.score(list(pictures()), TEXTS), atol=1e-5)


def test_int8_is_smaller_and_near(exported: tuple[velm.Pipeline, Path], tmp_path: Path) -> None:
    import onnx

    pipeline, folder = exported[0], shutil.copytree(exported[1], tmp_path / "int8")
    quantize_folder(folder)
    (folder / "sha256.json").unlink()
    velm.onnx.folder.seal_folder(folder)
    kinds = {path.stem: [node.op_type for node in onnx.load(path).graph.node] for path in folder.glob("*.onnx")}
    assert "MatMulInteger" in kinds["image"]  # of the block
    assert {"MatMul", "Gemm"} & set(kinds["image"])  # of the patch embedding and of the projection
    assert "MatMulInteger" not in kinds["text"]  # a recurrent cell and a projection
    runner, images = velm.onnx.load(folder), list(pictures())
    for found, expected in (
        (runner.embed_images(images), pipeline.embed_images(images).numpy()),
        (runner.embed_texts(TEXTS), pipeline.embed_texts(TEXTS).numpy()),
    ):
        assert (found * expected).sum(axis=1).min() > 0.99
        assert not np.array_equal(found, expected)
    assert len(runner.caption(images)) == 3


def test_int8_fails_by_its_cosine_and_a_tolerance_rules() -> None:
    expected = {"image_embeds": torch.eye(3), "log_probs": torch.tensor([[-1.0], [-2.0], [-3.0]])}
    near = {"image_embeds": torch.eye(3) + 0.05, "log_probs": torch.tensor([[-1.1], [-2.0], [-2.9]])}
    captions = ["a", "b", "c"]
    differences = formats._require_near(Golden([], [], expected, captions), Golden([], [], near, captions), "velm.onnx")
    assert [difference.name for difference in differences if difference.passed] == ["image_embeds", "log_probs"]
    others = formats._require_near(
        Golden([], [], expected, captions), Golden([], [], near, ["x", "y", "z"]), "velm.onnx"
    )
    assert [difference.name for difference in others] == ["image_embeds"]  # log p of other captions says nothing
    assert not any(difference.passed for difference in compare(expected, near, 1e-3))
    far = {**near, "image_embeds": torch.eye(3).flip(0) + torch.eye(3)}
    with pytest.raises(ExportError, match=r"too far from the checkpoint.*image_embeds.*a cosine of 0.99 and more"):
        formats._require_near(Golden([], [], expected, captions), Golden([], [], far, captions), "velm.onnx")


def test_inputs_that_cannot_be_used(exported: tuple[velm.Pipeline, Path]) -> None:
    runner = velm.onnx.load(exported[1])
    with pytest.raises(PipelineError, match="images is a list, also of one; got a single ndarray"):
        runner.embed_images(pictures()[0])
    with pytest.raises(DataError, match="uint8 of shape"):
        runner.embed_images([pictures()[0] / 255])
    with pytest.raises(DataError, match="not int"):
        runner.caption([3])
    with pytest.raises(PipelineError, match=r"texts\[1\] is ''"):
        runner.embed_texts(["a", ""])
    with pytest.raises(PipelineError, match="The decoder attends over image: give images"):
        runner.caption(texts=["a"])
    with pytest.raises(PipelineError, match=r"Unknown \['prefix'\]"):
        runner.caption(list(pictures()), prefix="a")
    with pytest.raises(PipelineError, match="Unknown kind of score 'l2'"):
        runner.score(list(pictures()), TEXTS, kind="l2")  # type: ignore[arg-type]
    with pytest.warns(UserWarning, match="longer than the 16 tokens"):
        runner.embed_texts(["ring " * 30])


class _Branching(ImageEncoder):
    """Its path depends on the pixels, which no graph can follow."""

    def __init__(self, *, dim: int = 16) -> None:
        super().__init__()
        self.dim, self.linear = dim, torch.nn.Linear(3, dim)

    def forward(self, images: torch.Tensor) -> EncoderOutput:
        features = self.linear(images.flatten(2).transpose(1, 2))
        features = features.relu() if float(images.mean()) > 0 else features
        return EncoderOutput(features, features.mean(dim=1))


class _Letters(ByteTokenizer):
    pass


def test_what_cannot_be_exported_is_named(write_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    path = write_checkpoint(image_encoder={"name": f"{__name__}:_Branching"}, decoder=None, losses={"contrastive": {}})
    message = r"image encoder '.*_Branching' cannot be exported to ONNX: \w+: .*\. --format velm takes it"
    with pytest.raises(ExportError, match=message):
        velm.export(path, tmp_path / "out", format="onnx")
    assert not (tmp_path / "out").exists()


def test_a_decoder_without_a_tensor_form_and_a_tokenizer_of_a_plugin(
    write_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    path = write_checkpoint(decoder={"name": "git", "config": small})
    monkeypatch.setattr(registry.tokenizers, "get", lambda name: _Letters)
    with pytest.raises(
        ExportError,
        match=r"the state of the decoder 'git' .* has no form as tensors.*; the tokenizer 'word' is a plugin",
    ):
        formats._onnx(velm.sources.open_source(path), velm.load(path), tmp_path, Golden([], []))


def test_formats_packages_and_quantize(
    write_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="--quantize is int8, of --format onnx; got 'int8' of velm"):
        velm.export(write_checkpoint(), tmp_path / "out", quantize="int8")
    with pytest.raises(ConfigError, match="got 'int4' of onnx"):
        velm.export(write_checkpoint(), tmp_path / "out", format="onnx", quantize="int4")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingPackageError, match=r"needs the package onnxscript: pip install 'velm\[onnx\]'"):
        velm.export(write_checkpoint(), tmp_path / "out", format="onnx")


BERT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
GPT2 = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 20}
PARTS: list[dict[str, Any]] = [
    {"image_encoder": {"name": "cnn", "dim": 16}, "text_encoder": {"name": "transformer", "dim": 16, "depth": 1},
     "decoder": {"name": "rnn", "dim": 16, "gate": True}, "memory": ["image", "text"]},
    {"image_encoder": {"name": "cnn", "dim": 8}, "text_encoder": {"name": "transformer", "dim": 16, "depth": 1},
     "decoder": {"name": "transformer", "dim": 16, "depth": 2, "image_gate": True}, "memory": ["image", "text"]},
    {"image_encoder": {"name": "torchvision/mobilenet_v2"}, "decoder": {"name": "hf/gpt2", "config": GPT2},
     "text_encoder": {"name": "rnn", "dim": 16, "cell": "lstm", "bidirectional": True, "layers": 2, "pooling": "mean"}},
    {"image_encoder": {"name": "hf/vit", "config": {**BERT, "image_size": 32, "patch_size": 8}},
     "text_encoder": {"name": "hf/bert", "config": BERT}, "decoder": {"name": "hf/bert", "config": BERT},
     "memory": ["text"], "losses": {"captioning": {}}},
    {"text_encoder": {"name": "decoder"}, "image_encoder": {"name": "vit", "dim": 16, "depth": 1, "heads": 2,
     "patch_size": 8, "pooling": "map", "positions": "learned", "position_grid": 4},
     "decoder": {"name": "transformer", "dim": 16, "depth": 2, "heads": 2, "unimodal_depth": 1, "alternating": True}},
    {"text_encoder": {"name": "transformer", "dim": 16, "depth": 1, "pooling": "end", "fixed_length": 16,
     "max_length": 16, "fill_id": 1, "reads_bos": True}, "decoder": {"name": "rnn", "dim": 16, "cell": "gru"}},
    {"text_encoder": {"name": "rnn", "dim": 16, "cell": "tanh"}, "decoder": None, "losses": {"contrastive": {}}},
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("parts", PARTS)
def test_parts(write_checkpoint: Callable[..., Path], tmp_path: Path, parts: dict[str, Any]) -> None:
    path = write_checkpoint(**parts)
    made = velm.export(path, tmp_path / "out", format="onnx")
    assert all(difference.passed for difference in made.differences)
    pipeline, runner = velm.load(path), velm.onnx.load(made.folder)
    if pipeline.writes:
        images = list(pictures()) if "image" in pipeline.model.reads else None
        texts = TEXTS if "text" in pipeline.model.reads else None
        assert runner.caption(images, texts, num_beams=3) == pipeline.caption(images, texts, num_beams=3)


@pytest.mark.slow
def test_quantize_on_the_command_line(
    write_checkpoint: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["export", str(write_checkpoint()), "--format", "onnx", "--quantize", "int8", "--data"]
    assert cli.main([*arguments, "--output", str(tmp_path / "out"), "--max_change", "1"]) == 0
    printed = capsys.readouterr().out
    assert "is exported as velm.onnx (int8)" in printed
    assert "CIDEr-D" in printed
    with pytest.raises(ExportError, match="does not say the same"):
        velm.export(write_checkpoint(), tmp_path / "more", format="onnx", quantize="int8", tolerance=1e-6)
