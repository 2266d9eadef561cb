"""The checkpoints that VELM writes of a run, best.ckpt and last.ckpt, beside any `ModelCheckpoint` of the user."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import ModelCheckpoint

from velm.errors import ConfigError
from velm.training.recovery.checkpoint_io import LAST, exists, is_url, join

__all__ = ["BEST", "RunCheckpoint", "named_checkpoint", "run_checkpoints"]

BEST = "best.ckpt"


class RunCheckpoint(ModelCheckpoint):
    """A `ModelCheckpoint` of VELM, whose state has a key of its own in a checkpoint.

    Lightning's key holds the monitor and the intervals only, so that a user's callback that watches the same metric
    would have the key of best.ckpt, and Lightning refuses two callbacks with one key.
    """

    @property
    def state_key(self) -> str:
        return f"velm/{self.filename}/{super().state_key}"

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take the state from the key that earlier versions of VELM gave it."""
        states = checkpoint.get("callbacks", {})
        earlier = super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)
        if self.state_key not in states and earlier in states:
            states[self.state_key] = states.pop(earlier)


def run_checkpoints(folder: str, *, monitor: str | None, every_n_steps: int | None) -> list[RunCheckpoint]:
    """The callbacks that write last.ckpt and best.ckpt.

    Args:
        folder: path or URL.
        monitor: the metric that selects best.ckpt, the larger the better; None: there is no best.ckpt.
        every_n_steps: optimizer steps after which last.ckpt is written inside an epoch; None: at epochs' ends only.
    """
    shared: dict[str, Any] = {"dirpath": folder, "enable_version_counter": False}
    callbacks = [RunCheckpoint(filename="last", save_on_train_epoch_end=True, **shared)]
    if every_n_steps is not None:
        callbacks.append(RunCheckpoint(filename="last", every_n_train_steps=every_n_steps, **shared))
    if monitor is not None:
        callbacks.append(RunCheckpoint(filename="best", monitor=monitor, mode="max", **shared))
    return callbacks


def named_checkpoint(ckpt_path: str | None, folder: str) -> str | None:
    """The path that `--ckpt_path` means: 'best' and 'last' are the run's files, unless a file has that name.

    Args:
        ckpt_path: as typed; `~` is the home folder.
        folder: path or URL of the run's checkpoints.

    Raises:
        ConfigError: the run has no such checkpoint, or the path is a folder; the message says what there is.
    """
    if ckpt_path is None or is_url(ckpt_path):
        return ckpt_path
    path = Path(ckpt_path).expanduser()
    if ckpt_path in ("best", "last") and not path.is_file():
        named = join(folder, BEST if ckpt_path == "best" else LAST)
        if not exists(named):
            raise ConfigError(f"--ckpt_path={ckpt_path} is {named} here, and there is no such file. {_present(folder)}")
        return named
    if path.is_dir():
        raise ConfigError(f"--ckpt_path={ckpt_path} is a folder, and a checkpoint is a file. {_present(str(path))}")
    return str(path)


def _present(folder: str) -> str:
    files = [join(folder, name) for name in (BEST, LAST) if exists(join(folder, name))]
    if files:
        return f"There is: --ckpt_path={' or --ckpt_path='.join(files)}"
    return (
        f"{folder} holds neither {BEST} nor {LAST}: train first, name the run's folder "
        f"(--trainer.default_root_dir=...), or give the path of a checkpoint."
    )
