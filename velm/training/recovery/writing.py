"""Figures and captions that cannot be written end no run."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["forgiving"]

_told: set[str] = set()


@contextmanager
def forgiving(file: Path | str) -> Iterator[None]:
    """Warn of an `OSError` (disk full, quota, network) once a file, and go on."""
    try:
        yield
    except OSError as error:
        if str(file) not in _told:
            _told.add(str(file))
            warnings.warn(
                f"{file} cannot be written ({error}): training goes on, and what belongs there may be missing.",
                stacklevel=3,
            )
