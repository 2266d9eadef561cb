"""The memory that torch's CPU allocator holds during operations."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def allocated_peak(step: Callable[[], Tensor]) -> int:
    """Bytes that torch's CPU allocator held at most in a forward and backward pass, beyond what it held before."""
    return allocated(lambda: step().backward())


def allocated(operations: Callable[[], None]) -> int:
    """Bytes that torch's CPU allocator held at most, beyond what it held before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        operations()
    now = peak = 0
    for event in profile.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak
