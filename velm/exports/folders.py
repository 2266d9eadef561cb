"""An output folder that appears only when it is whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from velm.errors import ExportError

__all__ = ["new_folder"]


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """Yield an empty folder beside `output`; rename it to `output` when the block ends, delete it when it raises.

    Raises:
        ExportError: `output` is a file or a folder that is not empty, or the disk cannot be written.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        what = "is a folder that is not empty" if output.is_dir() else "is a file"
        raise ExportError(f"--output {output} {what}, and an export replaces nothing. Name a new folder.")
    partial = output.with_name(f".{output.name}.{os.getpid()}.part")
    try:
        partial.mkdir(parents=True)
        yield partial
        if output.exists():
            output.rmdir()
        partial.rename(output)
    except (OSError, SafetensorError) as error:  # of a full disk, by a write of Python or of safetensors
        cause = getattr(error, "strerror", None) or error
        raise ExportError(
            f"{output} cannot be written: {cause}. Nothing was left there; free some space or name another place."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
