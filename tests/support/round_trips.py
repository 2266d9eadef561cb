"""Checkpoints of random weights, out to another library and in again."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import foreign
import torch

import velm
from velm.checkpoint import Checkpoint, pack
from velm.exports import Exported
from velm.sources import open_source


def require_same_weights(one: Checkpoint, other: Checkpoint) -> None:
    """Bit for bit, by name."""
    first, second = one.state_dict(), other.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def in_out_in(source: str, output: Path, format: str, **options: Any) -> tuple[Exported, Checkpoint]:
    """Export what was imported, import that, and require the weights of the first import; the second import."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = velm.export(source, output, format=format, **options)
        before = open_source(source)
        after = open_source(f"{source.partition('/')[0]}/{made.folder}")
    require_same_weights(before, after)
    assert (before.transform, before.max_length) == (after.transform, after.max_length)
    return made, after


def write_own(
    folder: Path, config: dict[str, Any], tokenizer: Any, tokenizer_name: str, max_length: int, **changes: Any
) -> Path:
    """A checkpoint of a model config, for images of 32 pixels, as training would write it.

    Args:
        changes: to the transform under `transform`; others are arguments of `pack`.
    """
    config = {"vocab_size": tokenizer.vocab_size, "pad_id": tokenizer.pad_id, **config}
    with foreign.seeded():
        model = foreign.randomise(velm.build_model(config))
    transform = {"image_size": 32, "resize": "squash", "interpolation": "bicubic"} | changes.pop("transform", {})
    entry = pack(
        model=model, config=config, tokenizer=tokenizer, tokenizer_name=tokenizer_name, transform=transform,
        max_length=max_length, data={}, **changes,
    )  # fmt: skip
    weights = {f"model.{key}": value for key, value in model.state_dict().items()}
    if "logit_scale" in changes:
        weights["losses.contrastive.log_scale"] = torch.tensor(changes["logit_scale"]).log()
    torch.save({"state_dict": weights, "velm": entry}, folder / "own.ckpt")
    return folder / "own.ckpt"
