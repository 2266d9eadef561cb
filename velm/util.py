"""Small helpers that every room uses: suggestions, atomic writes, error summaries, a progress bar."""

from __future__ import annotations

import hashlib
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "Progress",
    "describe_error",
    "did_you_mean",
    "durable",
    "evaluating",
    "flat_options",
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


def flat_options(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The options of a nested config by dotted names: ('model.optimizer.lr', 0.001); an empty mapping is a value."""
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from flat_options(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


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


class durable:
    """A binary file that takes its name when it is complete and on the disk; nothing remains if the block raises.

    The rename survives a power cut, too, where the system can sync folders.

    Args:
        path: of the file.
        partial: its name until then, in the same folder; None: `path` with '.part'.
    """

    def __init__(self, path: Path, partial: Path | None = None) -> None:
        self.path, self.partial = path, path.with_name(f"{path.name}.part") if partial is None else partial

    def __enter__(self) -> IO[bytes]:
        self.file = self.partial.open("wb")
        return self.file

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            with self.file:
                if kind is None:
                    self.file.flush()
                    os.fsync(self.file.fileno())
            if kind is None:
                os.replace(self.partial, self.path)
                _sync_folder(self.path.parent)
        finally:
            with suppress(OSError):
                self.partial.unlink()


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


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
