"""A run's folder when a fit begins: locked, an earlier run set aside, or the run in it gone on with."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from velm.errors import ConfigError
from velm.training.recovery.checkpoint_io import LAST, exists, is_url, join
from velm.training.recovery.lock import RunLock

__all__ = ["begin", "refuse_url", "restarted", "to_go_on_from"]


def restarted() -> bool:
    """Whether torchrun has started this run's processes anew, after one of them failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


def refuse_url(folder: str) -> None:
    """
    Raises:
        ConfigError: the run's folder is a URL.
    """
    if is_url(folder):
        raise ConfigError(
            f"trainer.default_root_dir is {folder}, and a run's figures and its lock need a folder of a disk. Give it "
            f"one, and --checkpoint_dir={folder} for the checkpoints."
        )


def to_go_on_from(checkpoints: str, ckpt_path: Any) -> Any:
    """Under --resume: the run's own last.ckpt, else what --ckpt_path says, else None: from the beginning."""
    last = join(checkpoints, LAST)
    return last if exists(last) else ckpt_path


@rank_zero_only
def begin(folder: Path, *, keep: bool, wait: bool) -> RunLock | None:
    """Take the folder's lock; unless the run in it is to be kept, set that aside. None on other ranks than 0.

    Raises:
        ConfigError: another run is in the folder.
    """
    lock = RunLock(folder, wait=wait)
    lock.take()
    if not keep and any((folder / name).exists() for name in ("config.yaml", "metrics.csv", LAST)):
        lock.release()
        _set_aside(folder)
        lock.take()
    return lock


def _set_aside(folder: Path) -> None:
    """Keep an earlier run of the same name: runs/x becomes runs/x.1, x.2, ..."""
    number = 1
    while folder.with_name(f"{folder.name}.{number}").exists():
        number += 1
    kept = folder.with_name(f"{folder.name}.{number}")
    folder.rename(kept)
    print(f"An earlier run was in {folder}: it is in {kept} now. To go on: --ckpt_path {kept}/{LAST}")
