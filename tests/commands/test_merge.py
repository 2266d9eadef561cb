"""`velm merge` writes the adapted model as an ordinary checkpoint; a foreign base is found and verified too."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import velm
from velm import cli
from velm.checkpoint import build_from_checkpoint, read_checkpoint
from velm.pretrained.adapters import adapted_layers
from velm.pretrained.base import leave_out

pytest.importorskip("peft")

ADAPT = {"image_encoder": "lora", "decoder": {"name": "dora", "r": 2}}


@pytest.fixture
def adapted(write_checkpoint: Callable[..., Path]) -> Path:
    """`base.ckpt`, and `adapted.ckpt` of the same model with adapters that have learned."""
    base = torch.load(write_checkpoint("base.ckpt"), weights_only=True)["state_dict"]
    path = write_checkpoint("adapted.ckpt", adapt=ADAPT)
    content = torch.load(path, weights_only=True)
    for name, tensor in content["state_dict"].items():
        if "lora_" in name and "magnitude" not in name:
            tensor.normal_(std=0.1)
        elif name.replace(".base_layer.", ".") in base and "projection" not in name:
            tensor.copy_(base[name.replace(".base_layer.", ".")])
    torch.save(content, path)
    return path


def test_the_merged_checkpoint_is_the_adapted_model_without_adapters(
    adapted: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = velm.load(adapted)
    output = adapted.parent / "new" / "merged.ckpt"
    assert cli.main(["merge", str(adapted), "--output", str(output)]) == 0
    assert "The adapters of image_encoder, decoder are merged" in capsys.readouterr().out
    assert "adapt" not in read_checkpoint(output).config
    monkeypatch.setitem(sys.modules, "peft", None)
    found = velm.load(output)
    assert all(torch.equal(tensor, found.model.state_dict()[n]) for n, tensor in expected.model.state_dict().items())
    assert found.logit_scale == expected.logit_scale


def test_a_base_that_has_moved_is_named(adapted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, small = adapted.parent / "base.ckpt", adapted.parent / "small.ckpt"
    weights = torch.load(base, weights_only=True)["state_dict"]
    content = torch.load(adapted, weights_only=True)
    torch.save(leave_out(content, base=weights, source=str(base), folder=adapted.parent), small)
    base.rename(adapted.parent / "moved.ckpt")
    options = ["merge", str(small), "--output", str(adapted.parent / "merged.ckpt")]
    assert cli.main(options) == 2
    assert f"leaves out the weights of its base, {base}. No checkpoint at {base}" in capsys.readouterr().err
    assert cli.main([*options, "--base", str(adapted)]) == 2
    assert "has other weights of the same names (sha256" in capsys.readouterr().err
    assert cli.main([*options, "--base", str(adapted.parent / "moved.ckpt")]) == 0
    expected, found = (
        velm.load(adapted).model.state_dict(),
        velm.load(adapted.parent / "merged.ckpt").model.state_dict(),
    )
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())


def test_a_checkpoint_without_adapters_is_written_as_it_is(
    write_checkpoint: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["merge", str(write_checkpoint()), "--output", str(tmp_path / "same.ckpt")]) == 0
    assert "has no adapters and is complete now" in capsys.readouterr().out
    velm.load(tmp_path / "same.ckpt")


def test_a_checkpoint_names_no_class_as_its_adapter(adapted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = torch.load(adapted, weights_only=True)
    content["velm"]["config"]["adapt"]["decoder"] = {"name": "subprocess:Popen", "args": "true"}
    torch.save(content, adapted)
    assert cli.main(["merge", str(adapted), "--output", str(adapted.parent / "x.ckpt")]) == 2
    assert "Unknown adapter 'subprocess:Popen' of the decoder" in capsys.readouterr().err


@pytest.mark.slow
def test_adapters_of_a_clip_of_vit_b_32_take_less_than_two_percent() -> None:
    """Rank 8 in both towers, with both projections and the scale trained beside them."""
    from velm.model import build_model

    image = {"name": "vit", "dim": 768, "depth": 12, "heads": 12, "patch_size": 32, "pooling": "class"}
    text = {"name": "transformer", "dim": 512, "depth": 12, "heads": 8, "max_length": 77, "causal": True}
    config = {"image_encoder": image, "text_encoder": text, "embed_dim": 512, "vocab_size": 49408}
    state = build_model(config).state_dict()
    model = build_model({**config, "adapt": {"image_encoder": "lora", "text_encoder": "lora"}})
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    assert trained < 0.01 * sum(tensor.nbytes for tensor in state.values())


def test_the_unmerged_model_is_there_for_training_on(adapted: Path) -> None:
    assert list(adapted_layers(build_from_checkpoint(read_checkpoint(adapted))))
