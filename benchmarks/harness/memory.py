"""Peak memory above the memory at the start: resident on a CPU, allocated on a GPU."""

from __future__ import annotations

import gc
import re
from pathlib import Path

__all__ = ["MB", "Peak", "highest"]

MB = 2**20


class Peak:
    """Starts on construction, in a process that already has its weights, gradients and optimizer state."""

    def __init__(self, device: str) -> None:
        gc.collect()
        self.device = device
        self.start = 0.0
        if device == "cuda":
            import torch

            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self.start = float(torch.cuda.memory_allocated())
        elif Path("/proc/self/clear_refs").exists():
            Path("/proc/self/clear_refs").write_text("5")  # resets the peak to the current resident memory
            self.start = highest()

    def extra_mb(self) -> float:
        """MiB above the start; NaN if it cannot be measured."""
        if self.device == "cuda":
            import torch

            return (torch.cuda.max_memory_allocated() - self.start) / MB
        return max(0.0, highest() - self.start) / MB


def highest() -> float:
    """Peak resident bytes of this program; `getrusage` would include the parent's. NaN without /proc."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        return float("nan")
    return float("nan") if found is None else 1024.0 * int(found[1])
