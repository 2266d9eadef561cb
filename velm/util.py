"""Small helpers that every room uses: suggestions, atomic writes, error summaries, a progress bar."""

from __future__ import annotations

import hashlib
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "Progress",
    "describe_error",
    "did_you_mean",
    "evaluating",
    "progress_bar",
    "sha256_of",
    "warn_on_oserror",
    "write_atomically",
]

Progress = Callable[[int, int], None]
"""Called with (done, total) as work proceeds."""


def did_you_mean(name: str, candidates: Iterable[str], count: int = 1) -> str:
    """' Did you mean 'vit'?', or '' where no candidate is close to `name`."""
    import difflib  # not needed by `velm --help`

    close = difflib.get_close_matches(name, list(candidates), n=count)
    return f" Did you mean {' or '.join(map(repr, close))}?" if close else ""


def describe_error(error: BaseException) -> str:
    """The type and the first line of the message of an exception: 'OSError: disk full'."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode; afterwards each module inside is back in its previous mode."""
    training = [each for each in module.modules() if each.training]
    module.eval()
    try:
        yield
    finally:
        for each in training:
            each.training = True


@contextmanager
def write_atomically(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block ends, delete it when the block raises.

    Readers see the old file or the whole new one. The temporary name holds the process id, so that several processes
    may write the same path.
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise


_warned_files: set[str] = set()


def sha256_of(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def warn_on_oserror(file: str | os.PathLike[str]) -> Iterator[None]:
    """Turn an OSError (disk full, quota, network) into a warning, once per file: its loss must not end a run."""
    try:
        yield
    except OSError as error:
        if str(file) not in _warned_files:
            _warned_files.add(str(file))
            warnings.warn(
                f"{file} cannot be written ({error}): training continues, and rows of it may be missing.", stacklevel=3
            )


def progress_bar(unit: str) -> Progress | None:
    """A tqdm bar on stderr that counts `unit`s; None where stderr is no terminal."""
    if not sys.stderr.isatty():
        return None
    from tqdm import tqdm

    bar = tqdm(unit=f" {unit}", dynamic_ncols=True, leave=False)

    def show(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)
        if done >= total:
            bar.close()

    return show
