"""How each kind of exported folder is read and asked: golden inputs to golden outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from velm.exports.golden import Golden, golden_outputs, maps_of
from velm.exports.hf_readers import open_transformers
from velm.exports.open_clip_reader import OpenClipModel

__all__ = ["MODELS", "READERS"]


def _velm(folder: Path, plugins: Sequence[str]) -> Any:
    from velm.pipeline import load

    return load(folder, plugins=plugins)


def _backbone(folder: Path, golden: Golden, plugins: Sequence[str]) -> Golden:
    from velm.backbone import load_backbone

    return maps_of(load_backbone(folder, plugins=plugins), golden)


READERS: dict[str, Callable[[Path, Golden, Sequence[str]], Golden]] = {
    "velm": lambda folder, golden, plugins: golden_outputs(_velm(folder, plugins), golden),
    "transformers": lambda folder, golden, _: open_transformers(folder).golden(golden),
    "open_clip": lambda folder, golden, _: OpenClipModel(folder).golden(golden),
    "backbone": _backbone,
}

MODELS: dict[str, Callable[[Path, Sequence[str]], Any]] = {
    "velm": _velm,
    "transformers": lambda folder, _: open_transformers(folder),
    "open_clip": lambda folder, _: OpenClipModel(folder),
}
"""What opens a folder as a `velm.exports.change.Model`, for `--data`."""
