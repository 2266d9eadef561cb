"""A config that trains in a second, and `velm fit` on it inside this process."""

from __future__ import annotations

from pathlib import Path

import yaml

from velm import cli

TINY = {
    "seed_everything": 0,
    "model": {
        "image_encoder": {"name": "cnn", "dim": 16},
        "text_encoder": {"name": "rnn", "dim": 16},
        "decoder": {"name": "transformer", "dim": 16, "depth": 1, "heads": 2},
        "losses": {"contrastive": {"weight": 1.0}, "captioning": {"weight": 2.0}},
        "validation": {"max_length": 6, "panel": 2},
    },
    "data": {
        "dataset": {"name": "shapes", "train_size": 32, "val_size": 8, "test_size": 8},
        "image_size": 32,
        "batch_size": 8,
    },
    "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 1},
}


def tiny_config(folder: Path, name: str = "tiny.yaml") -> Path:
    """The file of `TINY` in a folder."""
    path = folder / name
    path.write_text(yaml.safe_dump(TINY), encoding="utf-8")
    return path


def fit(config: Path, *more: str) -> int:
    """The exit code of `velm fit`."""
    return cli.main(["fit", "--config", str(config), *more])
