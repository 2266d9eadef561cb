"""What examples/detection and examples/segmentation share: drawn scenes with exact masks, and a frozen backbone."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

import velm
from velm.backbone import Backbone
from velm.checkpoint import read_checkpoint
from velm.data.synthetic.scenes import SHAPES
from velm.data.synthetic.shapes import Shapes, object_mask

CLASSES = ("background", *SHAPES)
"""Objects are told apart by their shape, whatever their colour and size."""


class Scenes:
    """Scenes of a split, drawn once.

    Attributes:
        images: uint8 (n, 3, S, S).
        masks: bool (n, objects, S, S), the pixels of each object.
        labels: int64 (n, objects), indices of `CLASSES`.
    """

    def __init__(self, split: str, size: int, image_size: int) -> None:
        records = Shapes(image_size=image_size, **{f"{split}_size": size}).split(split)
        images, masks, labels = [], [], []
        for record in records:
            objects = record.metadata["objects"]
            images.append(torch.from_numpy(np.asarray(record.image)).permute(2, 0, 1))
            masks.append(np.stack([object_mask(thing, image_size) for thing in objects]))
            labels.append([CLASSES.index(thing["shape"]) for thing in objects])
        self.images, self.masks = torch.stack(images), torch.from_numpy(np.stack(masks))
        self.labels = torch.tensor(labels)

    def batches(self, size: int, steps: int) -> Iterator[Tensor]:
        """Rows of `steps` random batches, int64 (size,)."""
        rows = torch.randperm(len(self.images))
        for _ in range(steps):
            if len(rows) < size:
                rows = torch.cat([rows, torch.randperm(len(self.images))])
            yield rows[:size]
            rows = rows[size:]


def options(description: str | None) -> argparse.ArgumentParser:
    """The options of both examples."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="of velm fit; its image encoder is the backbone")
    parser.add_argument(
        "--start",
        default="velm",
        metavar="S",
        help="weights of the backbone: velm (the checkpoint's), random or a FILE",
    )
    parser.add_argument("--trainable", action="store_true", help="train the backbone, too; by default it is frozen")
    parser.add_argument("--images", type=int, default=1000, metavar="N", help="scenes to train on")
    parser.add_argument("--steps", type=int, default=400, metavar="N", help="batches to train on")
    parser.add_argument("--batch", type=int, default=16, metavar="N", help="scenes of a batch")
    parser.add_argument("--test", type=int, default=300, metavar="N", help="scenes to measure on")
    parser.add_argument("--image_size", type=int, default=64, metavar="S", help="side of a scene, in pixels")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    return parser


def build_backbone(args: argparse.Namespace, scenes: Scenes, out_channels: int | None) -> Backbone:
    """The image encoder of the checkpoint from `args.start`: its maps of 4 pixels a cell and coarser.

    Batch norm of random weights is measured on the scenes: as built, it would not normalise.
    """
    if args.start == "velm":
        every = velm.load(args.checkpoint).backbone()
    else:
        config = dict(read_checkpoint(args.checkpoint).config["image_encoder"])
        if args.start != "random":
            config["weights"] = str(Path(args.start).resolve())
        every = Backbone(velm.image_encoders.build(config))
    if args.start == "random":
        measure_batch_norm(every, scenes.images)
    chosen = [number for number, reduction in enumerate(every.feature_info.reduction()) if reduction >= 4]
    return Backbone(every.encoder, out_channels=out_channels, out_indices=chosen, trainable=args.trainable)


@torch.no_grad()
def measure_batch_norm(backbone: Backbone, images: Tensor) -> None:
    """Set the running statistics of batch norm to their mean over some batches."""
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # the mean of all batches
    backbone.train()
    for part in images[:512].split(64):
        backbone(part)
    backbone.eval()


def train(
    model: nn.Module,
    scenes: Scenes,
    steps: int,
    batch: int,
    loss_of: Callable[[Tensor], Tensor],
    rate: float = 2e-3,
) -> None:
    """Train what is trainable by AdamW, at a rate that rises for a tenth of the steps and falls to zero.

    Args:
        loss_of: the loss of the scenes in some rows, int64 (batch,). It is printed now and then.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=1e-4)
    rates = OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    model.train()
    for step, rows in enumerate(scenes.batches(batch, steps), start=1):
        loss = loss_of(rows)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rates.step()
        if step % max(1, steps // 6) == 0:
            print(f"step {step}  loss {loss.item():.3f}", flush=True)
