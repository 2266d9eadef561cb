"""How the C library hands memory out: what a step frees, the next one takes again."""

from __future__ import annotations

import ctypes
import os

__all__ = ["keep_freed_memory"]

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
"""Of mallopt(3)."""
TUNED = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_ARENA_MAX", "GLIBC_TUNABLES")
"""Variables of the environment by which people set this themselves."""
LARGEST = 2**30
"""Bytes up to which a freed block is kept for the next that asks, in place of being given back to the kernel."""


def keep_freed_memory(device: str) -> bool:
    """Let glibc keep what a model on a CPU frees, so that the kernel does not zero the same pages step after step.

    Gradients and activations of 32 MiB and more are mapped anew for each step otherwise, which took a tenth of a CLIP
    step (`python -m benchmarks clip_step`). All threads share one arena, since those of other threads than the main one
    map every block above 64 MiB: the model of `velm serve` has a thread of its own. The peak stays what it is.

    Args:
        device: the model's, such as 'cpu' or 'cuda:0'; other devices than a CPU have allocators of their own.

    Returns:
        whether it was set: not so on another device, where the C library is not glibc, or where the environment tunes
        it already.
    """
    if device.partition(":")[0] != "cpu":
        return False
    if any(name in os.environ for name in TUNED):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # no glibc: musl, macOS, Windows
        return False
    settings = ((M_MMAP_THRESHOLD, LARGEST), (M_TRIM_THRESHOLD, LARGEST), (M_ARENA_MAX, 1))
    return all(mallopt(parameter, value) for parameter, value in settings)
