"""torch.compile of the towers, such that sentences of other lengths are no other graph."""

from __future__ import annotations

import torch
import torch._functorch.config
from torch import nn

from velm.decoders.base import Decoder

__all__ = ["compile_tower"]


def compile_tower(tower: nn.Module, backend: str = "inductor") -> None:
    """Compile what a training step calls of an encoder or a decoder; names of weights stay as they are.

    Lengths are symbols from the first step on (`dynamic`), so that a batch with a longer sentence compiles nothing.
    What Dynamo cannot follow (a loop over the steps of an RNN) runs as before.

    Args:
        tower: an encoder, whose `forward` is compiled, or a decoder, whose `decode` is.
        backend: of torch.compile.
    """
    if isinstance(tower, Decoder):
        tower.decode = torch.compile(tower.decode, dynamic=True, backend=backend)  # type: ignore[method-assign]
    else:
        tower.compile(dynamic=True, backend=backend)


def keep_graphs(compiled: bool) -> None:
    """Let what is compiled from now on be gone through backwards more than once, at the price of some memory.

    Otherwise a compiled backward pass writes over activations that it has used ("donated buffers").
    """
    if compiled:
        torch._functorch.config.donated_buffer = False
