"""`warn_if_emulated`: bfloat16 on a CPU that has no instructions for it."""

from __future__ import annotations

import warnings

import torch

from velm import _compat

__all__ = ["warn_if_emulated"]


def warn_if_emulated(device: torch.device, precision: str, instead: str) -> None:
    """Warn that a precision is slower than float32 on this device.

    On a CPU with AVX2 alone torch multiplies bfloat16 number by number: matrix products took 37 times as long as in
    float32, LSTMs 8 times, an EfficientNet-Lite0 27 times (`python benchmarks/image_towers.py` on an EPYC, torch 2.14).

    Args:
        precision: of Lightning or of a pipeline, such as 'bf16-mixed' or 'bf16'.
        instead: the option that selects float32, for the message.
    """
    if device.type == "cpu" and precision.startswith("bf16") and not _compat.multiplies_bfloat16():
        warnings.warn(
            f"This CPU ({torch.backends.cpu.get_cpu_capability()}) has no instructions for bfloat16, and torch "
            f"computes {precision} on it 8 to 40 times as slowly as float32. Give {instead}.",
            stacklevel=2,
        )
