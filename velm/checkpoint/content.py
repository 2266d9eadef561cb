"""`Checkpoint`, what a checkpoint file holds before anything is built from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from velm.pretrained.base import PARTIAL

__all__ = ["COMPLETE", "FORMAT", "Checkpoint", "weights_of"]

FORMAT = PARTIAL
"""The newest layout of the "velm" entry; increased when an older VELM could not read the new layout."""
COMPLETE = 1
"""The layout of files that hold all weights."""


@dataclass(frozen=True)
class Checkpoint:
    """The content of a file, before anything is built from it.

    Attributes:
        path: the file.
        version: of the VELM that wrote it.
        config: the model config, with vocab_size and pad_id; `build_model` takes it. Its `plugins` are modules or
            .py files whose decorators register parts.
        tokenizer: {'name': ..., 'state': ...}.
        transform: options of `EvalTransform`.
        max_length: longest text in tokens, bos and eos included.
        plugins: parts that are not VELM's own: kind, name, target, distribution, version.
        data: the data config of the training.
        target: whether the dataset has captions to write apart from the texts to read.
        weights: state dict of the model; the average where training kept one.
        loss_weights: state dict of the losses, by the name of a loss.
        raw_weights: the weights as trained; None where training kept no average.
        aligned: whether a loss trained the joint space; None in files written before this was stored.
        logit_scale: inverse temperature that the alignment loss learned; None if it learned none.
        logit_bias: what that loss adds to the scaled cosines (SigLIP); None if it has none.
        tokenization: of captions in the metrics of the training, see `velm.metrics.tokenization`.
        origin: how the weights were made, if not by a training: {'imported': 'hf/openai/clip-vit-base-patch32'}.
    """

    path: Path
    version: str
    config: dict[str, Any]
    tokenizer: dict[str, Any]
    transform: dict[str, Any]
    max_length: int
    plugins: list[dict[str, str]]
    data: dict[str, Any]
    target: bool
    weights: dict[str, Tensor]
    raw_weights: dict[str, Tensor] | None
    loss_weights: dict[str, Tensor]
    aligned: bool | None = None
    logit_scale: float | None = None
    logit_bias: float | None = None
    tokenization: str = "auto"
    origin: dict[str, Any] = field(default_factory=dict)

    def state_dict(self) -> dict[str, Tensor]:
        """The weights of model and losses by their names in the file: 'model.decoder.norm.weight'."""
        model = {f"model.{name}": tensor for name, tensor in self.weights.items()}
        return model | {f"losses.{name}": tensor for name, tensor in self.loss_weights.items()}


def weights_of(part: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of 'model', 'losses' or 'losses.contrastive' in a state dict, without that prefix."""
    prefix = f"{part}."
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
