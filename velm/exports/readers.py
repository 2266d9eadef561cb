"""How each kind of exported folder is read and asked: golden inputs to golden outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from velm.exports.golden import TOKENS, Golden, golden_outputs, maps_of
from velm.exports.hf_readers import open_transformers
from velm.exports.open_clip_reader import OpenClipModel

__all__ = ["MODELS", "READERS"]


def _velm(folder: Path, plugins: Sequence[str]) -> Any:
    from velm.pipeline import load

    return load(folder, plugins=plugins)


def _backbone(folder: Path, golden: Golden, plugins: Sequence[str]) -> Golden:
    from velm.backbone import load_backbone

    return maps_of(load_backbone(folder, plugins=plugins), golden)


def _onnx(folder: Path) -> Any:
    from velm import onnx

    return onnx.load(folder)


def _torch(folder: Path, plugins: Sequence[str]) -> Any:
    from velm.exports.torch_reader import open_torch
    from velm.registry import load_plugins

    load_plugins(plugins)
    return open_torch(folder)


def _arrays_golden(pipeline: Any, golden: Golden) -> Golden:
    """Of an `OnnxPipeline`, in this process; an export to ONNX asks one without torch, see `velm.exports.fresh`."""
    from velm.onnx.golden import answers

    tensors, captions = answers(pipeline, golden.images, golden.texts, TOKENS)
    return Golden(golden.images, golden.texts, {n: torch.from_numpy(each) for n, each in tensors.items()}, captions)


READERS: dict[str, Callable[[Path, Golden, Sequence[str]], Golden]] = {
    "velm": lambda folder, golden, plugins: golden_outputs(_velm(folder, plugins), golden),
    "transformers": lambda folder, golden, _: open_transformers(folder).golden(golden),
    "open_clip": lambda folder, golden, _: OpenClipModel(folder).golden(golden),
    "backbone": _backbone,
    "onnx": lambda folder, golden, _: _arrays_golden(_onnx(folder), golden),
    "torch": lambda folder, golden, plugins: _arrays_golden(_torch(folder, plugins), golden),
}

MODELS: dict[str, Callable[[Path, Sequence[str]], Any]] = {
    "velm": _velm,
    "transformers": lambda folder, _: open_transformers(folder),
    "open_clip": lambda folder, _: OpenClipModel(folder),
    "onnx": lambda folder, _: _onnx(folder),
    "torch": _torch,
}
"""What opens a folder as a `velm.exports.change.Model`, for `--data`."""
