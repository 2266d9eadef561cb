"""How a run ends that cannot go on through no fault of the config's; imports nothing heavy."""

from __future__ import annotations

__all__ = ["RunFailedError"]


class RunFailedError(RuntimeError):
    """Training ended before its time; the message says why, what is saved and what to do."""
