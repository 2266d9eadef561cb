"""Time of an epoch with a frozen CNN, from images and from cached features, and the difference of the losses.

    python benchmarks/cache_features.py [--batches 12] [--folder kept] [options of velm fit]

Both runs take the same steps for two epochs, one run after the other. Reported are the median and the minimum over the
steps of the second epoch, from the end of one step to the end of the next, so that waiting for images is included.
Validation is off. The cache is a new folder, and the time to fill it is printed, unless `--folder` names an existing
one.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from itertools import pairwise
from statistics import median
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

from velm.training.build import build_data, build_task
from velm.training.run import parse_fit

CONFIG = [
    "--config=configs/flickr8k_cnn_rnn.yaml", "--model.image_encoder.trainable=0", "--data.augment.crop_scale=null",
    "--data.augment.flip=false", "--data.augment.color_jitter=0", "--model.optimizer.lr_scale={}",
]  # fmt: skip


class Watch(Callback):
    """Losses of the steps, and the times at which they end."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.ends: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(float(outputs["loss"]))
        self.ends.append(time.perf_counter())

    def steps(self) -> list[float]:
        """Seconds of each step of the second epoch."""
        return [end - start for start, end in pairwise(self.ends[len(self.ends) // 2 - 1 :])]


def fit(arguments: list[str], batches: int) -> Watch:
    config = parse_fit([*CONFIG, *arguments])
    lightning.seed_everything(config["seed_everything"])
    data = build_data(config["data"])
    task = build_task(config["model"], vocab_size=data.vocab_size, pad_id=data.pad_id)
    watch = Watch()
    lightning.Trainer(
        max_epochs=2, limit_train_batches=batches, limit_val_batches=0, precision=config["trainer"]["precision"],
        gradient_clip_val=1.0, use_distributed_sampler=False, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[watch],
    ).fit(task, datamodule=data)  # fmt: skip
    return watch


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--batches", type=int, default=12)
    parser.add_argument("--folder")
    args, rest = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as new:
        options = ([], [f"--data.cache_features={args.folder or new}"])
        watches = [fit([*rest, *more], args.batches) for more in options]
    for name, watch in zip(("images", "features"), watches, strict=True):
        print(f"a step of {name}: median {median(watch.steps()):.3f} s, shortest {min(watch.steps()):.3f} s")
    pixels, features = (watch.steps() for watch in watches)
    print(f"ratio: of medians {median(features) / median(pixels):.3f}, of shortest {min(features) / min(pixels):.3f}")
    pairs = zip(watches[0].losses, watches[1].losses, strict=True)
    difference = max(abs(one - other) for one, other in pairs)
    first, last = watches[0].losses[0], watches[0].losses[-1]
    print(f"losses {first:.3f} ... {last:.3f} nats in {2 * args.batches} steps, largest difference {difference:.6f}")


if __name__ == "__main__":
    sys.exit(main())
