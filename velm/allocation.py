"""How the C library hands memory out: what a step frees, the next one takes again."""

from __future__ import annotations

import ctypes
import os

__all__ = ["keep_freed_memory"]

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of mallopt(3)."""
TUNED = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")
"""Variables of the environment by which people set this themselves."""
LARGEST = 2**30
"""Bytes up to which a freed block is kept for the next that asks, in place of being given back to the kernel."""


def keep_freed_memory() -> bool:
    """Let glibc keep what training on a CPU frees, so that the kernel does not zero the same pages step after step.

    Gradients and activations of 32 MiB and more are mapped anew for each step otherwise, which took a tenth of a CLIP
    step (`python -m benchmarks clip_step`). The peak stays what it is.

    Returns:
        whether it was set: not so where the C library is not glibc, or where the environment tunes it already.
    """
    if any(name in os.environ for name in TUNED):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # no glibc: musl, macOS, Windows
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST) and mallopt(M_TRIM_THRESHOLD, LARGEST))
