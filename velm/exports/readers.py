"""How each kind of exported folder is read and asked: golden inputs to golden outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from velm.exports.golden import Golden, golden_outputs
from velm.exports.hf_readers import read_dual, read_llava
from velm.exports.open_clip_reader import read_open_clip

__all__ = ["READERS"]


def _velm(folder: Path, golden: Golden, plugins: Sequence[str]) -> Golden:
    from velm.pipeline import load

    return golden_outputs(load(folder, plugins=plugins), golden)


def _transformers(folder: Path, golden: Golden, plugins: Sequence[str]) -> Golden:
    from transformers import AutoConfig

    llava = AutoConfig.from_pretrained(folder).model_type == "llava"
    return read_llava(folder, golden) if llava else read_dual(folder, golden)


def _open_clip(folder: Path, golden: Golden, plugins: Sequence[str]) -> Golden:
    return read_open_clip(folder, golden)


READERS: dict[str, Callable[[Path, Golden, Sequence[str]], Golden]] = {
    "velm": _velm,
    "transformers": _transformers,
    "open_clip": _open_clip,
}
