"""examples/detection and examples/segmentation: exact boxes and masks, three starts, and both commands in small."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import velm
from examples.detection import detect
from examples.scenes import CLASSES, Scenes, build_backbone, options
from examples.segmentation import segment

CNN = {"name": "cnn", "dim": 16, "norm": "batch"}
SMALL = ["--images", "6", "--test", "4", "--steps", "2", "--batch", "2", "--image_size", "32"]


@pytest.fixture
def checkpoint(write_checkpoint: Callable[..., Path]) -> str:
    return str(write_checkpoint(image_encoder=CNN))


def test_boxes_are_as_small_as_the_masks() -> None:
    scenes = Scenes("test", 5, 64)
    for row, target in enumerate(detect.targets(scenes, range(5))):
        for mask, (left, top, right, bottom) in zip(scenes.masks[row], target["boxes"].int().tolist(), strict=True):
            assert mask[top:bottom, left:right].sum() == mask.sum()
            inside = mask[top:bottom, left:right]
            assert all(edge.any() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))
    pixels = segment.classes_of_pixels(scenes, torch.arange(5))
    assert torch.equal(pixels > 0, scenes.masks.any(dim=1))
    assert set(pixels.unique().tolist()) <= set(range(len(CLASSES)))


def test_batches_take_every_scene_in_turn() -> None:
    scenes = Scenes("test", 6, 32)
    rows = torch.cat(list(scenes.batches(4, 3)))
    assert rows[:6].sort().values.tolist() == list(range(6))
    assert rows[6:].sort().values.tolist() == list(range(6))


def test_starts(checkpoint: str, tmp_path: Path, write_checkpoint: Callable[..., Path]) -> None:
    scenes = Scenes("train", 4, 32)

    def start(path: str, name: str) -> dict[str, torch.Tensor]:
        args = options(None).parse_args([path, "--start", name])
        backbone = build_backbone(args, scenes, 8)
        assert backbone.feature_info.reduction() == [4, 8] or "mobilenet" in path
        assert not any(parameter.requires_grad for parameter in backbone.encoder.parameters())
        return backbone.encoder.state_dict()

    image_encoder = velm.load(checkpoint).model.image_encoder
    assert image_encoder is not None
    trained, other = start(checkpoint, "velm"), start(checkpoint, "random")
    weights = image_encoder.state_dict()
    assert all(torch.equal(tensor, trained[name]) for name, tensor in weights.items())
    assert not torch.equal(trained["stages.0.weight"], other["stages.0.weight"])
    assert other["blocks.0.running_mean"].any()  # measured
    encoder = {"name": "torchvision/mobilenet_v2", "features": "features.3"}
    torch.save(velm.image_encoders.build(encoder).trunk.model.state_dict(), tmp_path / "weights.pth")
    mobilenet = str(write_checkpoint("mobilenet.ckpt", image_encoder=encoder))
    stored = torch.load(tmp_path / "weights.pth")
    found = start(mobilenet, str(tmp_path / "weights.pth"))
    assert all(torch.equal(tensor, found[f"trunk.model.{name}"]) for name, tensor in stored.items())


def test_detection_in_small(checkpoint: str) -> None:
    pytest.importorskip("pycocotools")
    found = detect.main([checkpoint, *SMALL, "--trainable"])
    assert set(found) == {"map", "map_50", "map_75"}


def test_segmentation_learns_scenes_by_heart(checkpoint: str) -> None:
    found = segment.main([checkpoint, *SMALL, "--start", "random"])
    assert set(found) == {"mean IoU", *CLASSES}
    torch.manual_seed(0)
    scenes = Scenes("train", 4, 32)
    model = segment.Segmenter(velm.load(checkpoint).backbone())
    segment.fit(model, scenes, 60, 4)
    assert segment.measure(model, scenes)["background"] > 0.9
