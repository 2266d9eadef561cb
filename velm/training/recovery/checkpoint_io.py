"""Checkpoints that a kill or a full disk cannot harm, the last few kept, on a disk or at any fsspec URL."""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import warnings
import zipfile
from pathlib import Path
from typing import IO, Any, cast

import torch
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from velm.errors import CheckpointError, ConfigError, RunFailedError

__all__ = ["Checkpoints", "exists", "is_url", "join", "newest_whole"]

LAST = "last.ckpt"
UNREADABLE = (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile)


class Checkpoints(TorchCheckpointIO):
    """Lightning's way to write checkpoints, made safe.

    On a disk a checkpoint is written beside the old one, synced, and put in its place: there is a whole one at every
    moment. (fsspec's transaction writes to the system's temporary folder; moving from there to another disk is a copy,
    and a kill in the middle of it leaves half a file.) A URL's file system does the same by its own means.

    A checkpoint that cannot be written (disk full, quota, network) is no reason to throw steps away: it is warned of
    and counted, the old one stays, training goes on and the next save tries again.

    Args:
        keep: how many of the newest `last.ckpt` are kept as `step_<n>.ckpt` too; on a disk these are hard links, so
            that the newest takes no room.

    Attributes:
        failed: file -> what went wrong, for those whose latest save failed.
        failures: saves that failed so far.
    """

    def __init__(self, keep: int = 0) -> None:
        self.keep = keep
        self.failed: dict[str, str] = {}
        self.failures = 0

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write it, or warn that it cannot be written."""
        step = int(checkpoint.get("global_step", 0))
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
                f"Step {step}: {path} could not be written ({error}). The one before it is whole; training goes on, "
                f"and the next save tries again ({self.failures} failed so far). Make room, or stop the run.",
                stacklevel=2,
            )
        else:
            self.failed.pop(_key(path), None)

    def has(self, path: Any) -> bool:
        """Whether the latest save to this file was one that worked, so far as is known."""
        return _key(path) not in self.failed

    def refuse_unsaved(self) -> None:
        """At the end of a run.

        Raises:
            RunFailedError: the last save of some checkpoint failed, so that the file is missing or older than the run.
        """
        if self.failed:
            listed = "; ".join(f"{path} ({cause})" for path, cause in self.failed.items())
            raise RunFailedError(
                f"Training is through, but the last save of these failed: {listed}. What is there is older than the "
                f"run. Make room and type the command again with --resume: it does the missing steps again."
            )

    def load_checkpoint(self, path: Any, *args: Any, **options: Any) -> dict[str, Any]:
        """
        Raises:
            CheckpointError: the file is damaged; the message names the newest one that is whole.
        """
        try:
            return super().load_checkpoint(path, *args, **options)
        except FileNotFoundError:
            raise CheckpointError(f"There is no checkpoint {path}. Look at --ckpt_path.") from None
        except UNREADABLE as error:
            if "Weights only load failed" in str(error):
                raise
            raise CheckpointError(_damaged(str(path), error)) from None

    def _save_local(self, checkpoint: dict[str, Any], path: Path, step: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        half_written = path.with_name(f"{path.name}.part")
        try:
            with open(half_written, "wb") as file:
                stream = _Stream(file)
                try:
                    torch.save(checkpoint, cast("IO[bytes]", stream))
                except RuntimeError:  # torch's writer speaks of an unexpected position where the disk is full
                    raise stream.error or OSError(f"{half_written} cannot be written") from None
                file.flush()
                os.fsync(file.fileno())
            if path.name == LAST and self.keep:
                _link(half_written, path.with_name(f"step_{step}.ckpt"))
            os.replace(half_written, path)
        except OSError:
            with contextlib.suppress(OSError):
                half_written.unlink()  # gives the room back
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
    """A file that remembers why it could not be written: torch's writer doesn't say."""

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
    """Whether it is an fsspec URL (`s3://`, `memory://`) rather than a path."""
    return "://" in str(path)


def join(folder: Any, name: str) -> str:
    """A file of a folder, which is a path or a URL."""
    return f"{str(folder).rstrip('/')}/{name}" if is_url(folder) else str(Path(folder) / name)


def exists(path: Any) -> bool:
    """Whether there is a file at a path or a URL.

    Raises:
        ConfigError: nothing is installed that opens such a URL.
    """
    try:
        files, inside = url_to_fs(str(path))
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"{path} cannot be opened: {error}. For s3:// and https://: pip install 'velm[remote]'."
        ) from None
    return bool(files.isfile(inside))


def newest_whole(folder: Any, apart_from: str = "") -> tuple[str, int] | None:
    """The checkpoint of a folder with most steps that can be read, and its steps; None if there is none."""
    whole = []
    for path in [*_steps(str(folder)), join(folder, LAST), join(folder, "best.ckpt")]:
        if path == str(apart_from) or not exists(path):
            continue
        with contextlib.suppress(*UNREADABLE):
            files, inside = url_to_fs(path)
            with files.open(inside, "rb") as file:
                whole.append((path, int(torch.load(file, map_location="cpu", weights_only=True)["global_step"])))
    return max(whole, key=lambda found: found[1], default=None)


def _damaged(path: str, error: BaseException) -> str:
    folder = path.rpartition("/")[0] if is_url(path) else str(Path(path).parent)
    found = newest_whole(folder, apart_from=path)
    advice = (
        "There is no whole checkpoint beside it: begin anew, without --ckpt_path and --resume."
        if found is None
        else f"The newest whole one beside it is of step {found[1]}: --ckpt_path={found[0]}"
    )
    cause = (str(error).splitlines() or [""])[0]
    return f"{path} is damaged or cut short ({type(error).__name__}: {cause}). {advice}"


def _key(path: Any) -> str:
    """One name for a file, however its path is written."""
    return str(path) if is_url(path) else str(Path(path).resolve())


def _local(path: Any) -> Path | None:
    """The path of a file on a disk of this machine (`file://` too); None for other URLs."""
    files, inside = url_to_fs(str(path))
    return Path(inside) if isinstance(files, LocalFileSystem) else None


def _steps(folder: str) -> list[str]:
    """step_<n>.ckpt of a folder, newest first."""
    files, inside = url_to_fs(folder)
    if not files.isdir(inside):
        return []
    names = [found.rstrip("/").rpartition("/")[2] for found in files.ls(inside, detail=False, refresh=True)]
    numbers = [name.removeprefix("step_").removesuffix(".ckpt") for name in names if name.startswith("step_")]
    return [join(folder, f"step_{n}.ckpt") for n in sorted((int(n) for n in numbers if n.isdigit()), reverse=True)]


def _link(source: Path, target: Path) -> None:
    """The same file under a second name, or a copy where the disk knows no links."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
