"""Laws of the timm bridge, with random weights."""

from __future__ import annotations

import copy
import importlib

import pytest
import torch

timm = pytest.importorskip("timm", reason="the extra 'timm' is not installed")

from velm.encoders.timm import TimmEncoder  # noqa: E402
from velm.pretrained.weights import skip_pretrained  # noqa: E402

VIT, CNN, SWIN = "test_vit", "test_resnet", "swin_tiny_patch4_window7_224"


@pytest.mark.parametrize("name", [VIT, CNN, "test_convnext", "test_efficientnet", "test_vit2", SWIN])
def test_every_family_gives_a_grid_of_positions(name):
    encoder = TimmEncoder(model_name=name).eval()
    output = encoder(torch.randn(1, 3, 64, 96))
    assert output.features.shape == (1, output.grid[0] * output.grid[1], encoder.dim)
    assert output.grid[1] > output.grid[0]
    assert torch.allclose(output.pooled, output.features.mean(dim=1))


def test_class_token_is_pooled_not_listed():
    encoder = TimmEncoder(model_name=VIT, pooling="class").eval()
    images = torch.randn(2, 3, 64, 64)
    raw = encoder.model.forward_features(images)
    output = encoder(images)
    assert torch.equal(output.pooled, raw[:, 0])
    assert torch.equal(output.features, raw[:, encoder.prefix :])


def test_frozen_stays_frozen_and_builds_no_graph():
    encoder = TimmEncoder(model_name=CNN, trainable="none").train()
    before = copy.deepcopy(encoder.state_dict())
    assert not encoder(torch.randn(2, 3, 64, 64)).features.requires_grad
    assert all(torch.equal(before[k], v) for k, v in encoder.state_dict().items())


def test_last_stage_learns_and_the_others_do_not():
    encoder = TimmEncoder(model_name=CNN, trainable=1).train()
    encoder(torch.randn(2, 3, 64, 64)).pooled.square().sum().backward()
    learnt = {name.split(".")[1] for name, p in encoder.named_parameters() if p.grad is not None}
    assert learnt == {"layer4"}


def test_weights_file_projection_and_rebuild_without_the_file(tmp_path):
    path = tmp_path / "weights.pth"
    source = timm.create_model(CNN)
    torch.save(source.state_dict(), path)  # with its classifier
    encoder = TimmEncoder(model_name=CNN, weights=str(path), dim=12, pooling="attention").eval()
    loaded = encoder.model.state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in source.state_dict().items() if name in loaded)
    path.unlink()
    with skip_pretrained():
        rebuilt = TimmEncoder(model_name=CNN, weights=str(path), dim=12, pooling="attention").eval()
    rebuilt.load_state_dict(encoder.state_dict())
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(encoder(images).pooled, rebuilt(images).pooled)
    assert encoder.portable_config == {"pretrained": False, "weights": None}


def test_pixels_are_normalised_as_the_model_expects():
    encoder = TimmEncoder(model_name="vit_tiny_patch16_224")
    assert encoder.image_mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_name": "resnet5O"}, "no model 'resnet5O'. Did you mean .*resnet50"),
        ({"model_name": CNN, "trainable": 99}, "from 0 to [0-9]+ for ResNet; got 99"),
        ({"model_name": CNN, "pooling": "class"}, "has no class token"),
        ({"model_name": CNN, "dim": 0}, "at least 1; got 0"),
        ({"model_name": "coat_tiny"}, "makes no single feature map"),
    ],
)
def test_errors_say_what_is_allowed(options, message):
    with pytest.raises(ValueError, match=message):
        TimmEncoder(**options)


def test_missing_weights_file():
    with pytest.raises(FileNotFoundError, match=r"no weights file 'nowhere\.pth'"):
        TimmEncoder(model_name=CNN, weights="nowhere.pth")


def test_without_timm_the_extra_is_named(monkeypatch):
    def missing(name, *rest):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ImportError, match=r"pip install 'velm\[timm\]'"):
        TimmEncoder(model_name=CNN)
