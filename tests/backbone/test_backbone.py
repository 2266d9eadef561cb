"""`Backbone`: maps of every stage, normalised inside, of any size, and what torchvision's detectors need."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from velm import registry
from velm.backbone import Backbone
from velm.encoders.base import ImageEncoder
from velm.errors import ConfigError, PipelineError
from velm.outputs import EncoderOutput

CNN = {"name": "cnn", "dim": 16}
VIT = {"name": "vit", "dim": 16, "depth": 1, "heads": 2, "patch_size": 8, "positions": "learned", "position_grid": 4}
STAGES: dict[str, tuple[Any, list[int], list[int]]] = {
    "cnn": (CNN, [4, 8, 16], [2, 4, 8]),
    "plain": ({**CNN, "architecture": "plain", "depth": 1}, [4, 8, 16, 16], [1, 2, 4, 8]),
    "vit": (VIT, [16], [8]),
    "attentional": ({"name": "attentional", "encoder": CNN, "dim": 8, "queries": 2, "heads": 2}, [4, 8, 16], [2, 4, 8]),
    "mobilenet": ({"name": "torchvision/mobilenet_v2", "dim": 8, "features": "features.13"}, [16, 24, 32, 96],
                  [2, 4, 8, 16]),
    "resnet": ({"name": "torchvision/resnet18", "features": "layer1"}, [64, 64], [2, 4]),
    "timm": ({"name": "timm/mobilenetv3_small_050", "trainable": "none"}, [16, 8, 16, 24, 288], [2, 4, 8, 16, 32]),
    "hooks": ({"name": "timm/ghostnet_050"}, [8, 12, 20, 40, 80], [2, 4, 8, 16, 32]),
}  # fmt: skip


def built(config: Any, **options: Any) -> Backbone:
    if "timm" in str(config):
        pytest.importorskip("timm")
    torch.manual_seed(0)
    return Backbone(registry.image_encoders.build(config), **options).eval()


def pixels(height: int = 64, width: int = 96) -> Tensor:
    return torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", STAGES)
@torch.no_grad()
def test_every_stage_has_a_map_with_its_channels_and_reduction(name: str) -> None:
    config, channels, reduction = STAGES[name]
    backbone = built(config)
    assert (backbone.feature_info.channels(), backbone.feature_info.reduction()) == (channels, reduction)
    maps = backbone(pixels())
    assert list(maps) == [str(number) for number in range(len(channels))]
    sizes = [(2, c, 64 // r, 96 // r) for c, r in zip(channels, reduction, strict=True)]
    assert [tuple(each.shape) for each in maps.values()] == sizes
    for found, same in zip(maps.values(), backbone(pixels().float() / 255).values(), strict=True):
        torch.testing.assert_close(found, same, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["cnn", "plain", "vit", "resnet"])
@torch.no_grad()
def test_the_last_map_is_what_the_model_reads(name: str) -> None:
    from velm.model import VisionLanguageModel

    backbone = built(STAGES[name][0])
    model = VisionLanguageModel(image_encoder=backbone.encoder, text_encoder=None).eval()  # type: ignore[arg-type]
    features = model.encode_image(pixels()).features
    last = list(backbone(pixels()).values())[-1]
    torch.testing.assert_close(last.flatten(2).transpose(1, 2), features, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_pyramid_has_one_width() -> None:
    stages, vit = built(CNN, out_channels=12), built(VIT, out_channels=12)
    for backbone, reduction in ((stages, [2, 4, 8]), (vit, [2, 4, 8, 16])):
        assert backbone.out_channels == 12
        assert backbone.feature_info.channels() == [12] * len(reduction)
        assert backbone.feature_info.reduction() == reduction
        sizes = [tuple(each.shape) for each in backbone(pixels()).values()]
        assert sizes == [(2, 12, 64 // r, 96 // r) for r in reduction]
    assert not hasattr(built(CNN), "out_channels")


@torch.no_grad()
def test_maps_are_chosen_by_number() -> None:
    every, last = built(CNN), built(CNN, out_indices=[-1, 1])
    assert last.feature_info.channels() == [8, 16]
    maps, chosen = every(pixels()), last(pixels())
    assert list(chosen) == ["0", "1"]
    assert torch.equal(maps["1"], chosen["0"])
    assert torch.equal(maps["2"], chosen["1"])
    pyramid = built(VIT, out_channels=4, out_indices=(1, 3))
    assert pyramid.feature_info.reduction() == [4, 16]
    assert [each.shape[2] for each in pyramid(pixels()).values()] == [16, 4]
    for indices in ([3], [-4], []):
        with pytest.raises(ConfigError, match=r"there are 3 maps, 0 \(the finest\) to 2"):
            built(CNN, out_indices=indices)
    with pytest.raises(ConfigError, match="at least 1; got 0"):
        built(CNN, out_channels=0)


def test_a_frozen_encoder_stays_as_it_is() -> None:
    backbone = built({"name": "torchvision/mobilenet_v2", "features": "features.3"}, out_channels=8, trainable=False)
    before = {name: tensor.clone() for name, tensor in backbone.encoder.state_dict().items()}
    backbone.train()
    sum(each.sum() for each in backbone(pixels()).values()).backward()  # type: ignore[union-attr]
    assert all(parameter.grad is None for parameter in backbone.encoder.parameters())
    assert backbone.pyramid is not None
    assert all(parameter.grad is not None for parameter in backbone.pyramid.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.encoder.state_dict().items())


@pytest.mark.parametrize("config", [{**CNN, "widths": [4]}, VIT], ids=["cnn", "vit"])
def test_torchvision_detects_on_it(config: Any) -> None:
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.ops import MultiScaleRoIAlign

    backbone = built(config, out_channels=8, out_indices=[0, 1])
    model = FasterRCNN(
        backbone, num_classes=3, min_size=32, max_size=64, image_mean=[0, 0, 0], image_std=[1, 1, 1],
        rpn_anchor_generator=AnchorGenerator(((8,), (16,)), ((1.0,),) * 2), box_detections_per_img=5,
        box_roi_pool=MultiScaleRoIAlign(["0", "1"], 3, 2), rpn_post_nms_top_n_test=10,
    )  # fmt: skip
    image = torch.rand(3, 32, 40)
    target = {"boxes": torch.tensor([[2.0, 3.0, 14.0, 20.0]]), "labels": torch.tensor([1])}
    losses = model.train()([image], [target])
    sum(losses.values()).backward()
    assert next(backbone.encoder.parameters()).grad is not None
    found = model.eval()([image])
    assert set(found[0]) == {"boxes", "labels", "scores"}


class Pooled(ImageEncoder):
    """An encoder whose features are no places of the image."""

    has_grid = False

    def __init__(self, grid: bool = False) -> None:
        super().__init__()
        self.dim, self.grid = 3, (1, 1) if grid else None

    def forward(self, images: Tensor) -> EncoderOutput:
        if images.shape[-1] != 48:
            raise ValueError(f"Pooled takes images of 48 pixels, not {images.shape[-1]}.")
        pooled = images.mean(dim=(2, 3))
        return EncoderOutput(pooled[:, None], pooled, grid=self.grid)


def test_what_has_no_maps_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"Pooled has no maps: its features lie on no grid.*implement `maps`"):
        Backbone(Pooled(), image_size=48)
    with pytest.raises(ConfigError, match="ViTEncoder has no maps"):
        built({**VIT, "pooling": "class", "class_in_features": True})


def test_sizes() -> None:
    plugin = Backbone(Pooled(grid=True), image_size=48)
    assert (plugin.feature_info.channels(), plugin.feature_info.reduction()) == ([3], [48])
    with pytest.raises(ValueError, match="takes images of 48 pixels, not 32"):
        plugin(pixels(32, 32))
    with pytest.raises(ConfigError, match="60 x 64 pixels cannot be cut into patches of 8 x 8"):
        built(VIT)(pixels(60, 64))
    with pytest.raises(ConfigError, match=r"2 x 2 pixels are too small for 3 maps: .* 8 pixels\. Enlarge them"):
        built(CNN)(pixels(2, 2))


def test_a_model_without_images_has_no_backbone() -> None:
    from types import SimpleNamespace

    from velm.pipeline import Pipeline

    with pytest.raises(PipelineError, match="no image_encoder, so it has no backbone"):
        Pipeline.backbone(SimpleNamespace(model=SimpleNamespace(image_encoder=None)))  # type: ignore[arg-type]
