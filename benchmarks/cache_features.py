"""Seconds of an epoch with a frozen CNN, from pictures and from their cached features, and how far the losses differ.

    python benchmarks/cache_features.py [--batches 24] [options of velm fit]

Both runs take the same steps one after the other, two epochs each; the second one's seconds count. Validation is off.
The cache lies in a new folder, so the time of filling it is seen too.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

from velm.training.run import build_data, build_task, parse_fit

CONFIG = [
    "--config=configs/flickr8k_cnn_rnn.yaml", "--model.image_encoder.trainable=0", "--data.augment.crop_scale=null",
    "--data.augment.flip=false", "--data.augment.color_jitter=0", "--model.optimizer.lr_scale={}",
]  # fmt: skip


class Watch(Callback):
    """Losses of steps, seconds of epochs, and seconds from the fit's start to its first step."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.epochs: list[float] = []

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.started = time.perf_counter()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(float(outputs["loss"]))

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.epochs.append(time.perf_counter() - self.started)


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
    parser.add_argument("--batches", type=int, default=24)
    args, rest = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        watches = [fit([*rest, *more], args.batches) for more in ([], [f"--data.cache_features={folder}"])]
    pixels, features = (watch.epochs[1] / args.batches for watch in watches)
    pairs = zip(watches[0].losses, watches[1].losses, strict=True)
    difference = max(abs(one - other) for one, other in pairs)
    print(f"a step of pictures {pixels:.3f} s, of features {features:.3f} s: {features / pixels:.3f}")
    print(
        f"losses {watches[0].losses[0]:.3f} ... {watches[0].losses[-1]:.3f} nats, largest difference {difference:.4f}"
    )


if __name__ == "__main__":
    sys.exit(main())
