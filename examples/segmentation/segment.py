"""A light head for segmentation on a backbone of VELM, trained on drawn scenes, whose masks are exact.

    velm fit --config examples/mobilenet.yaml
    python -m examples.segmentation.segment runs/mobilenet/best.ckpt                    # as VELM trained it
    python -m examples.segmentation.segment runs/mobilenet/best.ckpt --start random     # from random weights

Prints the intersection over union of each class on scenes that neither training saw. Run it from the root of the
repository.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassJaccardIndex

from examples.scenes import CLASSES, Scenes, build_backbone, options, train
from velm.backbone import Backbone

WIDTH = 32
"""Channels of the head."""


class Segmenter(nn.Module):
    """Every map is projected and enlarged to the finest; their sum is read by one more convolution.

    The semantic head of Kirillov et al. 2019 (arXiv 1901.02446, section 3.1), reduced.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.projections = nn.ModuleList(nn.Conv2d(c, WIDTH, 1) for c in backbone.feature_info.channels())
        self.head = nn.Sequential(
            nn.GroupNorm(4, WIDTH), nn.ReLU(), nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.ReLU(),
            nn.Conv2d(WIDTH, len(CLASSES), 1),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) to logits float (B, classes, H, W)."""
        maps = list(self.backbone(images).values())
        finest = maps[0].shape[2:]
        projected = [project(each) for project, each in zip(self.projections, maps, strict=True)]
        x = sum(F.interpolate(each, finest, mode="bilinear") for each in projected)
        return F.interpolate(self.head(x), images.shape[2:], mode="bilinear")


def classes_of_pixels(scenes: Scenes, rows: Tensor) -> Tensor:
    """int64 (B, S, S), 0 where there is no object; objects do not overlap."""
    return (scenes.masks[rows] * scenes.labels[rows][:, :, None, None]).sum(dim=1)


def fit(model: Segmenter, scenes: Scenes, steps: int, batch: int) -> None:
    """Train; prints the loss now and then."""

    def loss_of(rows: Tensor) -> Tensor:
        return F.cross_entropy(model(scenes.images[rows]), classes_of_pixels(scenes, rows))

    train(model, scenes, steps, batch, loss_of)


@torch.inference_mode()
def measure(model: Segmenter, scenes: Scenes, batch: int = 50) -> dict[str, float]:
    """Intersection over union of each class over all pixels, and their mean, the background included."""
    metric = MulticlassJaccardIndex(len(CLASSES), average="none")
    model.eval()
    for rows in torch.arange(len(scenes.images)).split(batch):
        metric.update(model(scenes.images[rows]).argmax(dim=1), classes_of_pixels(scenes, rows))
    found = metric.compute()
    return {"mean IoU": found.mean().item(), **dict(zip(CLASSES, found.tolist(), strict=True))}


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Train and measure; returns what it prints."""
    args = options(__doc__).parse_args(argv)
    torch.manual_seed(args.seed)
    scenes = Scenes("train", args.images, args.image_size)
    model = Segmenter(build_backbone(args, scenes, out_channels=None))
    print(f"maps of {model.backbone.feature_info.reduction()} pixels a cell; {args.start}", flush=True)
    fit(model, scenes, args.steps, args.batch)
    found = measure(model, Scenes("test", args.test, args.image_size))
    print("  ".join(f"{name} {value:.3f}" for name, value in found.items()))
    return found


if __name__ == "__main__":
    main()
