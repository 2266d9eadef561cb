"""Crash-safe checkpoints on a disk or at any fsspec URL: atomic writes, the last few kept, full disks survived."""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

import torch
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from velm.errors import CheckpointError, ConfigError, RunFailedError
from velm.pretrained.base import fill_in
from velm.sources import open_weights

__all__ = ["Checkpoints", "exists", "is_url", "join", "newest_complete"]

LAST = "last.ckpt"
UNREADABLE = (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile)


class Checkpoints(TorchCheckpointIO):
    """Lightning's `CheckpointIO` with atomic writes, which do not end the run when they fail.

    On a disk a checkpoint is written to `<name>.part`, synced, and renamed, so a complete one exists at every moment.
    (fsspec's transaction writes to the system's temporary folder; moving from there to another disk is a copy, and a
    kill in the middle of it leaves half a file.) For a URL the file system of the URL does this.

    When a checkpoint cannot be written (disk full, quota, network), a warning says so, the previous one stays, training
    continues and the next save tries again.

    Args:
        keep: number of the newest `last.ckpt` to keep as `step_<n>.ckpt` too; on a disk these are hard links, so the
            newest takes no space.
        shrink: makes of the content of best.ckpt what is written; None: best.ckpt is complete.

    Attributes:
        failed: file -> error, for the files whose latest save failed.
        failures: number of saves that failed so far.
    """

    def __init__(self, keep: int = 0, shrink: Callable[[dict[str, Any]], dict[str, Any]] | None = None) -> None:
        self.keep, self.shrink = keep, shrink
        self.failed: dict[str, str] = {}
        self.failures = 0

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write the checkpoint, or warn that it cannot be written."""
        step = int(checkpoint.get("global_step", 0))
        if self.shrink is not None and str(path).rpartition("/")[2] == "best.ckpt":
            checkpoint = self.shrink(checkpoint)
        try:
            local = _local(path)
            if local is None:
                super().save_checkpoint(checkpoint, path, storage_options)
                self._keep_remote(str(path), step)
            else:
                self._save_local(checkpoint, local, step)
        except OSError as error:
            self.failures += 1
            self.failed[_key(path)] = f"{type(error).__name__}: {error}"
            warnings.warn(
                f"Step {step}: {path} could not be written ({error}). The previous one is complete; training continues "
                f"and the next save tries again ({self.failures} failed so far). Free some space, or stop the run.",
                stacklevel=2,
            )
        else:
            self.failed.pop(_key(path), None)

    def is_saved(self, path: Any) -> bool:
        """Whether the latest save to this file did not fail."""
        return _key(path) not in self.failed

    def refuse_unsaved(self) -> None:
        """Call at the end of a run.

        Raises:
            RunFailedError: the last save of a checkpoint failed, so the file is missing or older than the weights.
        """
        if self.failed:
            listed = "; ".join(f"{path} ({cause})" for path, cause in self.failed.items())
            raise RunFailedError(
                f"Training has finished, but the last save of these failed: {listed}. The files are older than the "
                f"weights. Free some space and run the command again with --resume: it repeats the missing steps."
            )

    def load_checkpoint(self, path: Any, *args: Any, **options: Any) -> dict[str, Any]:
        """The content of a file, with the weights of its base if it leaves them out.

        Raises:
            CheckpointError: the file is damaged; the message names the newest complete one. Or its base is not there.
        """
        try:
            content = super().load_checkpoint(path, *args, **options)
        except FileNotFoundError:
            raise CheckpointError(f"There is no checkpoint {path}. Look at --ckpt_path.") from None
        except UNREADABLE as error:
            if "Weights only load failed" in str(error):
                raise CheckpointError(
                    f"{path} is no checkpoint that `velm fit` wrote: torch would have to run code to read it, and does "
                    f"not. A run can go on from its last.ckpt: --ckpt_path=runs/NAME/last.ckpt"
                ) from None
            raise CheckpointError(_damaged(str(path), error)) from None
        return fill_in(content, path, open_weights)

    def _save_local(self, checkpoint: dict[str, Any], path: Path, step: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.part")
        try:
            with open(partial, "wb") as file:
                stream = _Stream(file)
                try:
                    torch.save(checkpoint, cast("IO[bytes]", stream))
                except RuntimeError:  # on a full disk torch's writer reports an unexpected position
                    raise stream.error or OSError(f"{partial} cannot be written") from None
                file.flush()
                os.fsync(file.fileno())
            if path.name == LAST and self.keep:
                _link(partial, path.with_name(f"step_{step}.ckpt"))
            os.replace(partial, path)
        except OSError:
            with contextlib.suppress(OSError):
                partial.unlink()  # frees its space
            raise
        if path.name == LAST and self.keep:
            for old in _steps(str(path.parent))[self.keep :]:
                os.unlink(old)

    def _keep_remote(self, url: str, step: int) -> None:
        folder, _, name = url.rpartition("/")
        if name == LAST and self.keep:
            files, path = url_to_fs(url)
            files.copy(path, join(url_to_fs(folder)[1], f"step_{step}.ckpt"))
            for old in _steps(folder)[self.keep :]:
                files.rm(url_to_fs(old)[1])


class _Stream:
    """A file that keeps its write error, which torch's zip writer drops."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return int(self.file.write(data))
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def is_url(path: Any) -> bool:
    """Whether `path` is an fsspec URL (`s3://`, `memory://`) and not a local path."""
    return "://" in str(path)


def join(folder: Any, name: str) -> str:
    """Path or URL of the file `name` in a folder."""
    return f"{str(folder).rstrip('/')}/{name}" if is_url(folder) else str(Path(folder) / name)


def exists(path: Any) -> bool:
    """Whether a file exists at a path or URL.

    Raises:
        ConfigError: no installed package opens such a URL.
    """
    try:
        files, inside = url_to_fs(str(path))
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"{path} cannot be opened: {error}. For s3:// and https://: pip install 'velm[remote]'."
        ) from None
    return bool(files.isfile(inside))


def newest_complete(folder: Any, exclude: str = "") -> tuple[str, int] | None:
    """Path and step of the readable checkpoint with the most steps in a folder; None if there is none."""
    readable = []
    for path in [*_steps(str(folder)), join(folder, LAST), join(folder, "best.ckpt")]:
        if path == str(exclude) or not exists(path):
            continue
        with contextlib.suppress(*UNREADABLE):
            files, inside = url_to_fs(path)
            with files.open(inside, "rb") as file:
                content = torch.load(file, map_location="cpu", weights_only=True)
            if "base" not in content.get("velm", {}):  # a file of adapters has no optimizer state
                readable.append((path, int(content["global_step"])))
    return max(readable, key=lambda item: item[1], default=None)


def _damaged(path: str, error: BaseException) -> str:
    folder = path.rpartition("/")[0] if is_url(path) else str(Path(path).parent)
    newest = newest_complete(folder, exclude=path)
    advice = (
        "There is no complete checkpoint beside it: start from scratch, without --ckpt_path and --resume."
        if newest is None
        else f"The newest complete one beside it is of step {newest[1]}: --ckpt_path={newest[0]}"
    )
    cause = (str(error).splitlines() or [""])[0]
    return f"{path} is damaged or cut short ({type(error).__name__}: {cause}). {advice}"


def _key(path: Any) -> str:
    """The same key for every spelling of a path."""
    return str(path) if is_url(path) else str(Path(path).resolve())


def _local(path: Any) -> Path | None:
    """The local path of a path or `file://` URL; None for other URLs."""
    files, inside = url_to_fs(str(path))
    return Path(inside) if isinstance(files, LocalFileSystem) else None


def _steps(folder: str) -> list[str]:
    """The step_<n>.ckpt of a folder, newest first."""
    files, inside = url_to_fs(folder)
    if not files.isdir(inside):
        return []
    names = [path.rstrip("/").rpartition("/")[2] for path in files.ls(inside, detail=False, refresh=True)]
    numbers = [name.removeprefix("step_").removesuffix(".ckpt") for name in names if name.startswith("step_")]
    return [join(folder, f"step_{n}.ckpt") for n in sorted((int(n) for n in numbers if n.isdigit()), reverse=True)]


def _link(source: Path, target: Path) -> None:
    """Hard-link the file, or copy it on a file system without links."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
