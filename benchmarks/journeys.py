"""The files of velm/ whose functions run on three journeys.

A config to a model, a csv row to a record, a checkpoint to a caption:

    python benchmarks/journeys.py runs/quickstart/best.ckpt
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

import velm
from velm.model import build_model

ROOT = Path(velm.__file__).parent
MODEL = {
    "image_encoder": {"name": "cnn", "dim": 16, "widths": [8, 8]},
    "text_encoder": {"name": "rnn", "dim": 16},
    "decoder": {"name": "transformer", "dim": 16, "depth": 1, "heads": 2},
    "losses": {"contrastive": {}, "captioning": {}},
    "vocab_size": 20,
    "pad_id": 0,
}


def files_crossed(journey: Callable[[], Any]) -> list[str]:
    """The files of velm/ that have a function called by `journey`, in the order of the first calls."""
    files: dict[str, None] = {}

    def note(frame: Any, event: str, _: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and frame.f_code.co_name != "<module>" and path.is_relative_to(ROOT):
            files[str(path.relative_to(ROOT))] = None

    sys.setprofile(note)
    try:
        journey()
    finally:
        sys.setprofile(None)
    return list(files)


def caption(checkpoint: str) -> None:
    """Load a checkpoint and caption an image."""
    velm.load(checkpoint).caption([Image.new("RGB", (32, 32))])


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "captions.csv"
        table.write_text("image_path,text,split,image_id\n1.png,a dog,train,1\n", encoding="utf-8")
        Image.new("RGB", (32, 32)).save(table.with_name("1.png"))
        config = {"name": "csv", "path": str(table)}
        journeys = {
            "YAML line to module": lambda: build_model(MODEL),
            "csv row to Record": lambda: velm.datasets.build(config).split("train")[0],
        }
        for checkpoint in sys.argv[1:]:
            journeys["checkpoint to caption"] = lambda checkpoint=checkpoint: caption(checkpoint)
        for name, journey in journeys.items():
            files = files_crossed(journey)
            print(f"{name}: {len(files)} files: {' '.join(files)}")


if __name__ == "__main__":
    main()
