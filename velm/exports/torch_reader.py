"""Golden inputs through a folder of `velm export --format torch`: the programs by torch, none of VELM's models."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from velm import registry
from velm.onnx.folder import TOKENIZER, TRANSFORM, OnnxConfig, read_folder
from velm.onnx.images import ArrayTransform
from velm.onnx.pipeline import OnnxPipeline

__all__ = ["open_torch"]


def open_torch(folder: Path) -> OnnxPipeline:
    """The runner of `velm.onnx` over programs.

    Raises:
        CheckpointError: the folder is not whole, or is none of these.
    """
    config = read_folder(folder, "torch", ".pt2")
    programs = {name: _Program(folder / f"{name}.pt2", _outputs(config, name)) for name in config.graphs}
    stored = json.loads((folder / TOKENIZER).read_text(encoding="utf-8"))
    tokenizer: Any = registry.tokenizers.get(stored["name"])
    transform = ArrayTransform(**json.loads((folder / TRANSFORM).read_text(encoding="utf-8")))
    return OnnxPipeline(config, programs, tokenizer.from_state(stored["state"]), transform)


class _Program:
    """A program with the methods of an onnxruntime session that the runner calls."""

    def __init__(self, path: Path, outputs: list[str]) -> None:
        self.module, self.name, self.outputs = torch.export.load(path).module(), path.stem, outputs

    def get_outputs(self) -> list[Any]:
        return [SimpleNamespace(name=name) for name in self.outputs]

    @torch.no_grad()
    def run(self, _names: None, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in inputs.items()}
        return [output.numpy() for output in self.module(*_arguments(self.name, tensors))]


def _arguments(program: str, tensors: dict[str, torch.Tensor]) -> list[Any]:
    """The arguments of a program: start takes lists of features and masks; step a token, memory, masks and past."""
    if program in ("image", "text"):
        return list(tensors.values())
    masks = [tensor for name, tensor in tensors.items() if name.endswith("_mask")]
    if program == "start":
        return [[tensor for name, tensor in tensors.items() if name.endswith("_features")], masks]
    kinds = {
        kind: [tensor for name, tensor in tensors.items() if name.startswith(kind) and not name.endswith("_mask")]
        for kind in ("memory_", "past_")
    }
    return [tensors["token"], kinds["memory_"], masks, kinds["past_"]]


def _outputs(config: OnnxConfig, program: str) -> list[str]:
    if program in config.outputs:
        return config.outputs[program]
    assert config.decoder is not None
    return [*config.decoder.memory, *config.decoder.past] if program == "start" else []
