"""torchvision's Faster R-CNN on a backbone of VELM, trained on drawn scenes, whose boxes are exact.

    velm fit --config examples/mobilenet.yaml
    python -m examples.detection.detect runs/mobilenet/best.ckpt                    # the backbone as VELM trained it
    python -m examples.detection.detect runs/mobilenet/best.ckpt --start random     # the same one from random weights

Prints the mean average precision on scenes that neither training saw. Run it from the root of the repository.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign, masks_to_boxes

from examples.scenes import CLASSES, Scenes, build_backbone, options, train
from velm.backbone import Backbone

WIDTH, CELLS, HIDDEN = 64, 5, 128
"""Channels of the pyramid, cells along a side of a region, and hidden units of the head."""


def detector(backbone: Backbone, image_size: int) -> FasterRCNN:
    """A Faster R-CNN (Ren et al. 2015, arXiv 1506.01497) with small anchors and a small head."""
    reductions = backbone.feature_info.reduction()
    return FasterRCNN(
        backbone,
        min_size=image_size,
        max_size=image_size,
        image_mean=[0, 0, 0],  # the backbone normalises
        image_std=[1, 1, 1],
        rpn_anchor_generator=AnchorGenerator(tuple((3 * r, 5 * r) for r in reductions), ((1.0,),) * len(reductions)),
        rpn_pre_nms_top_n_train=200,
        rpn_post_nms_top_n_train=100,
        rpn_pre_nms_top_n_test=100,
        rpn_post_nms_top_n_test=30,
        box_roi_pool=MultiScaleRoIAlign([str(level) for level in range(len(reductions))], CELLS, 2),
        box_head=TwoMLPHead(WIDTH * CELLS**2, HIDDEN),
        box_predictor=FastRCNNPredictor(HIDDEN, len(CLASSES)),
        box_batch_size_per_image=32,
        box_detections_per_img=10,
    )


def targets(scenes: Scenes, rows: Sequence[int] | Tensor) -> list[dict[str, Tensor]]:
    """Boxes around the pixels of each object, and its class, as torchvision's detectors read them."""
    found = []
    for row in rows:
        boxes = masks_to_boxes(scenes.masks[row])
        boxes[:, 2:] += 1  # masks_to_boxes gives the last pixel
        found.append({"boxes": boxes, "labels": scenes.labels[row]})
    return found


def fit(model: FasterRCNN, scenes: Scenes, steps: int, batch: int) -> None:
    """Train; prints the loss now and then."""

    def loss_of(rows: Tensor) -> Tensor:
        return sum(model(list(scenes.images[rows] / 255), targets(scenes, rows)).values())

    train(model, scenes, steps, batch, loss_of)


@torch.inference_mode()
def measure(model: FasterRCNN, scenes: Scenes, batch: int = 50) -> dict[str, float]:
    """Mean average precision over IoU 0.5 to 0.95 (COCO's), and at 0.5 and 0.75."""
    metric = MeanAveragePrecision()
    model.eval()
    for rows in torch.arange(len(scenes.images)).split(batch):
        metric.update(model(list(scenes.images[rows] / 255)), targets(scenes, rows))
    found = metric.compute()
    return {name: found[name].item() for name in ("map", "map_50", "map_75")}


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Train and measure; returns what it prints."""
    args = options(__doc__).parse_args(argv)
    torch.manual_seed(args.seed)
    size = args.image_size
    scenes = Scenes("train", args.images, size)
    backbone = build_backbone(args, scenes, out_channels=WIDTH)
    print(f"maps of {backbone.feature_info.reduction()} pixels a cell; {args.start}", flush=True)
    model = detector(backbone, size)
    fit(model, scenes, args.steps, args.batch)
    found = measure(model, Scenes("test", args.test, size))
    print("  ".join(f"{name} {value:.3f}" for name, value in found.items()))
    return found


if __name__ == "__main__":
    main()
