"""torch.compile of the towers, with one graph for texts of any length."""

from __future__ import annotations

import torch
from torch import nn

from velm.decoders.base import Decoder

__all__ = ["compile_tower"]


def compile_tower(tower: nn.Module, backend: str = "inductor") -> None:
    """Compile the method of an encoder or a decoder that a training step calls; names of weights do not change.

    Lengths are symbolic from the first step on (`dynamic`), so that a batch with a longer text does not recompile.
    What Dynamo cannot trace (a loop over the steps of an RNN) runs uncompiled.

    Args:
        tower: an encoder (compiles `forward`) or a decoder (compiles `decode` and `decode_shared`).
        backend: of torch.compile.
    """
    if isinstance(tower, Decoder):
        for method in ("decode", "decode_shared"):
            setattr(tower, method, torch.compile(getattr(tower, method), dynamic=True, backend=backend))
    else:
        tower.compile(dynamic=True, backend=backend)
