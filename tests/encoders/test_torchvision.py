"""Laws of the torchvision bridge; weights are random but for the last test."""

from __future__ import annotations

import copy
import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision import models

from velm.encoders.torchvision import TorchvisionEncoder, Trunk
from velm.pretrained.weights import skip_pretrained

WEIGHTS = Path(__file__).parents[2] / "../shared/data/weights/mobilenet_v2_imagenet.pth"
SMALL = {"model_name": "mobilenet_v3_small", "features": "features.4"}
MODELS = {
    "mobilenet_v2": "features.3",
    "resnet18": "layer2",
    "regnet_y_400mf": "trunk_output.block1",
    "densenet121": "features.pool0",
    "convnext_tiny": "features.1",
    "efficientnet_b0": "features.2",
    "shufflenet_v2_x0_5": None,
    "squeezenet1_1": None,
    "mnasnet0_5": "layers.8",
    "googlenet": "inception3a",
    "swin_t": "features.1",
    "vit_b_32": "encoder.layers.encoder_layer_0",
}


@pytest.mark.parametrize(("name", "features"), MODELS.items())
def test_every_family_gives_a_grid_of_positions(name, features):
    encoder = TorchvisionEncoder(model_name=name, features=features).eval()
    output = encoder(torch.randn(1, 3, 64, 96))
    assert output.features.shape == (1, output.grid[0] * output.grid[1], encoder.dim)
    assert output.grid[1] > output.grid[0]
    assert torch.allclose(output.pooled, output.features.mean(dim=1))


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_pooled_feature_map_is_what_torchvision_classifies(name):
    torch.manual_seed(0)
    model = models.get_model(name).eval()
    encoder = TorchvisionEncoder(model_name=name).eval()
    encoder.trunk.model.load_state_dict(model.state_dict(), strict=False)
    seen = []
    model.avgpool.register_forward_hook(lambda module, given, result: seen.append(result.flatten(1)))
    images = torch.randn(2, 3, 64, 64)
    model(images)
    assert torch.allclose(encoder(images).pooled, seen[0], rtol=1e-4, atol=1e-5)


def small_vit(image_size):
    options = {"num_layers": 2, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32}
    return models.VisionTransformer(image_size=image_size, patch_size=32, **options).eval()


def test_vit_equals_torchvision():
    model = small_vit(96)
    trunk = Trunk(copy.deepcopy(model), None).eval()
    images = torch.randn(2, 3, 96, 96)
    tokens = torch.cat([model.class_token.expand(2, -1, -1), model._process_input(images)], dim=1)
    positions, grid = trunk(images)
    assert grid == (3, 3)
    assert torch.allclose(positions, model.encoder(tokens)[:, 1:], atol=1e-5)


def test_vit_weights_for_another_image_size_are_resized():
    trunk = Trunk(small_vit(96), None)
    trunk.model.load_state_dict(small_vit(64).state_dict(), strict=False)
    assert trunk.model.encoder.pos_embedding.shape[1] == 1 + 3 * 3


def test_folding_changes_nothing_but_the_time():
    encoder = TorchvisionEncoder(model_name="resnet18", features="layer2")
    for norm in (m for m in encoder.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(norm.running_mean, -1, 1), nn.init.uniform_(norm.running_var, 0.5, 2)
    encoder.eval()
    images = torch.randn(2, 3, 32, 32)
    plain = encoder(images).features
    with torch.inference_mode():
        folded = encoder(images).features
    assert torch.allclose(plain, folded, rtol=1e-4, atol=1e-5)


def test_folded_copy_follows_the_weights():
    encoder = TorchvisionEncoder(**SMALL, trainable="none")
    images = torch.randn(1, 3, 32, 32)
    before = encoder(images).features
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.mul_(1.5)
    assert not torch.allclose(before, encoder(images).features)
    assert torch.equal(encoder(images).features, copy.deepcopy(encoder)(images).features)


def test_frozen_stays_frozen_and_builds_no_graph():
    encoder = TorchvisionEncoder(**SMALL, trainable="none").train()
    before = copy.deepcopy(encoder.state_dict())
    assert not encoder(torch.randn(2, 3, 32, 32)).features.requires_grad
    assert not any(module.training for step in encoder.trunk._layers() for module in step.modules())
    assert all(torch.equal(before[k], v) for k, v in encoder.state_dict().items())


def test_frozen_encoder_still_says_which_pixels_mattered():
    images = torch.randn(1, 3, 32, 32, requires_grad=True)
    TorchvisionEncoder(**SMALL, trainable="none").eval()(images).pooled.sum().backward()
    assert images.grad.abs().sum() > 0


def test_last_stages_learn_and_the_others_do_not():
    encoder = TorchvisionEncoder(**SMALL, trainable=2).train()
    before = copy.deepcopy(encoder.state_dict())
    encoder(torch.randn(2, 3, 32, 32)).pooled.square().sum().backward()
    learnt = {name.split(".")[3] for name, p in encoder.named_parameters() if p.grad is not None}
    assert learnt == {"3", "4"}
    changed = {name.split(".")[3] for name, v in encoder.state_dict().items() if not torch.equal(before[name], v)}
    assert changed == {"3", "4"}  # the running statistics of the trainable stages only


def test_projection_and_attention_pooling():
    encoder = TorchvisionEncoder(**SMALL, trainable="none", dim=12, pooling="attention")
    output = encoder(torch.randn(1, 3, 32, 32))
    assert encoder.dim == 12
    assert output.features.shape[-1] == 12
    assert output.pooled.shape == (1, 12)
    output.pooled.sum().backward()
    assert encoder.projection.weight.grad is not None


def test_nested_feature_map_and_what_lies_behind_is_gone():
    encoder = TorchvisionEncoder(model_name="resnet18", features="layer2.0")
    names = set(encoder.state_dict())
    assert encoder.trunk.steps[-1] == "layer2.0"
    assert not any(name.startswith(("trunk.model.layer2.1", "trunk.model.layer3", "trunk.model.fc")) for name in names)


def test_half_precision_weights_file(tmp_path):
    model = models.mobilenet_v3_small()
    path = tmp_path / "half.pth"
    torch.save({"model": model.half().state_dict()}, path)
    encoder = TorchvisionEncoder(**SMALL, weights=str(path))
    loaded = encoder.trunk.model.features[0][0].weight
    assert loaded.dtype == torch.float32
    assert torch.equal(loaded, model.features[0][0].weight.float())
    with skip_pretrained():
        path.unlink()
        rebuilt = TorchvisionEncoder(**SMALL, weights=str(path))
    rebuilt.load_state_dict(encoder.state_dict())
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(encoder.eval()(images).features, rebuilt.eval()(images).features)


def test_weights_that_do_not_fit(tmp_path):
    state = models.mobilenet_v3_small().state_dict()
    torch.save({k: v for k, v in state.items() if k != "features.0.0.weight"}, tmp_path / "less.pth")
    with pytest.raises(ValueError, match=r"missing: features\.0\.0\.weight \(1\)"):
        TorchvisionEncoder(**SMALL, weights=str(tmp_path / "less.pth"))
    torch.save({**state, "fifth.wheel": torch.ones(1)}, tmp_path / "more.pth")
    with pytest.raises(ValueError, match=r"not of this model: fifth\.wheel"):
        TorchvisionEncoder(**SMALL, weights=str(tmp_path / "more.pth"))
    torch.save({**state, "features.0.0.weight": torch.ones(1)}, tmp_path / "shape.pth")
    with pytest.raises(ValueError, match=r"(?s)do not fit.*size mismatch"):
        TorchvisionEncoder(**SMALL, weights=str(tmp_path / "shape.pth"))
    torch.save(subprocess.run, tmp_path / "code.pth")
    with pytest.raises(ValueError, match="run code when loaded are refused"):
        TorchvisionEncoder(**SMALL, weights=str(tmp_path / "code.pth"))
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="holds no state dict"):
        TorchvisionEncoder(**SMALL, weights=str(tmp_path / "list.pth"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_name": "mobilenet_v22"}, "no classification model 'mobilenet_v22'. Did you mean 'mobilenet_v2'"),
        ({**SMALL, "weights": "nowhere.pth"}, "neither a file .* nor one of torchvision's: DEFAULT, IMAGENET1K_V1"),
        ({**SMALL, "features": "features.99"}, "no feature map 'features.99'.*Feature maps: features.0"),
        ({**SMALL, "features": "classifier"}, "no feature map 'classifier'"),
        ({**SMALL, "trainable": 9}, r"stages from 0 to 5; got 9. The stages: features\.0"),
        ({**SMALL, "trainable": "some"}, "'none', 'all' or a number of stages"),
        ({**SMALL, "dim": 0}, "at least 1; got 0"),
    ],
)
def test_errors_say_what_is_allowed(options, message):
    with pytest.raises(ValueError, match=message):
        TorchvisionEncoder(**options)


def test_download_without_a_network_says_what_to_do(monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(OSError, match=r"cannot be downloaded.*no route to host.*give its path"):
        TorchvisionEncoder(**SMALL, weights="DEFAULT")


@pytest.mark.skipif(not WEIGHTS.is_file(), reason="../shared/data/weights is not here")
def test_the_shared_mobilenet_weights_load():
    state = torch.load(WEIGHTS, weights_only=True)
    encoder = TorchvisionEncoder(model_name="mobilenet_v2", weights=str(WEIGHTS), trainable="none")
    assert encoder.dim == 1280
    assert encoder.portable_config == {"weights": None}
    assert torch.equal(encoder.trunk.model.features[18][1].running_var, state["features.18.1.running_var"].float())
