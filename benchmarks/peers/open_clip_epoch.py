"""Run `open_clip_train.main` on a model of our sizes, given as JSON; with a witness file it records what it did.

    python -m benchmarks.peers.open_clip_epoch MODELS WITNESS|- OPTIONS...

MODELS is a folder with <name>.json for `--model <name>`; all other options are those of open_clip.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

__all__ = ["main"]


def main(models: str, witness: str, *options: str) -> None:
    import open_clip
    from open_clip_train import main as script

    open_clip.add_model_config(models)
    if witness != "-":
        script.train_one_epoch = _seen(script.train_one_epoch, witness)
    script.main(list(options))


def _seen(train: Any, path: str) -> Any:
    """The training loop of open_clip, with its inputs recorded."""

    def train_one_epoch(
        model: Any, data: Any, loss: Any, epoch: int, optimizer: Any, *args: Any, **kwargs: Any
    ) -> None:
        rows: list[list[int]] = []
        first: list[float] = []
        model.register_forward_pre_hook(lambda module, inputs: rows.extend(inputs[1].tolist()))
        optimizer.register_step_post_hook(lambda *_: first.append(time.time()))
        train(model, data, loss, epoch, optimizer, *args, **kwargs)
        found = {
            "parameters": sum(each.numel() for each in model.parameters()),
            "steps": len(first),
            "samples": len(rows),
            "first": first[0],
            "sentences": [[token for token in row if token] for row in rows],
        }
        Path(path).write_text(json.dumps(found), encoding="utf-8")

    return train_one_epoch


if __name__ == "__main__":
    main(*sys.argv[1:])
