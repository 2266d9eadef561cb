"""How many floating-point operations a step asks for, and how many the device could do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.fabric.utilities.throughput import get_available_flops

from velm import _compat
from velm._compat import TorchDispatchMode

__all__ = ["ModelFlops", "peak_flops"]

_DTYPES = {
    "64-true": torch.float64,
    "16-mixed": torch.float16,
    "16-true": torch.float16,
    "bf16-mixed": torch.bfloat16,
    "bf16-true": torch.bfloat16,
}


class ModelFlops(TorchDispatchMode):
    """Counts what torch has a formula for (matrix products, convolutions, attention) while it is entered.

    What a checkpoint computes a second time is not counted: it is the model's work that is asked for, not the device's
    (MFU in the sense of PaLM, arXiv 2204.02311, appendix B). A cuDNN RNN has no formula and counts as nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        formula: Callable[..., int] | None = _compat.flop_formula(func)
        if formula is not None and not _compat.is_recomputing():
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Operations a second that the vendor promises; None for a CPU, or a device that Lightning has no figure of.

    Args:
        device: where training runs.
        precision: the Trainer's, e.g. 'bf16-mixed'.
    """
    if device.type != "cuda":
        return None
    return get_available_flops(device, _DTYPES.get(precision, torch.float32))
