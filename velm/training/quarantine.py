"""What of a run's data cannot be used: written down once each, and the end of the run where it is too much."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn

from velm.data.base import MissingSplitError
from velm.data.faults import BadDataError, Fault, refuse_too_many
from velm.outputs import Batch
from velm.training.distributed import gather_list
from velm.training.writing import forgiving

__all__ = ["FILE", "Quarantine", "write_down"]

FILE = "quarantine.jsonl"


class Quarantine(Callback):
    """Keeps `quarantine.jsonl` in the run's folder: {"path": ..., "cause": ..., "step": ...}, a line a fault.

    What a split's opening finds is there before the first step, what reading finds with the step that found it. On
    several devices rank 0 writes for all, every `log_every_n_steps` steps; a resumed run adds to the file.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / FILE
        self.faults: dict[str, dict[tuple[str, str], Fault]] = {"train": {}, "val": {}}
        self._pending: list[tuple[str, Fault]] = []
        self._unchecked = False  # something was found since the share was looked at

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Open the splits: too much that is bad is known before anything is trained."""
        if stage != "fit":
            return
        for split in ("train", "val") if trainer.limit_val_batches else ("train",):
            try:
                records = trainer.datamodule.records(split)  # type: ignore[attr-defined]
            except MissingSplitError:
                continue
            except BadDataError as error:
                if trainer.is_global_zero:
                    write_down(self.file, error.faults)
                raise
            self._pending += [(split, fault) for fault in getattr(records, "faults", ())]

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        known, self._pending = list(self._pending), []
        self._take(trainer, known)  # every rank has opened the same

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self._pending += [("train", fault) for fault in batch.faults]
        if trainer.world_size == 1 or (batch_idx + 1) % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._check(trainer)

    def on_validation_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._pending += [("val", fault) for fault in batch.faults]

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._check(trainer)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._check(trainer)

    def on_save_checkpoint(self, trainer: lightning.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """What was found before a checkpoint is written down when the checkpoint is."""
        self._collect(trainer)

    def _check(self, trainer: lightning.Trainer) -> None:
        """Write down what is new; end the run if it is too much by now."""
        self._collect(trainer)
        if not self._unchecked:
            return
        self._unchecked = False
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        for split, faults in self.faults.items():
            if not faults:
                continue
            try:
                refuse_too_many(list(faults.values()), len(data.records(split)), data.max_bad, f"split {split!r}")
            except BadDataError as error:
                raise BadDataError(f"{error} All of them: {self.file}", error.faults) from None

    def _collect(self, trainer: lightning.Trainer) -> None:
        found, self._pending = gather_list(self._pending), []
        self._take(trainer, found)

    def _take(self, trainer: lightning.Trainer, found: Sequence[tuple[str, Fault]]) -> None:
        new = []
        for split, fault in found:
            key = (fault.path, fault.cause)
            if key not in self.faults[split]:
                self.faults[split][key] = fault
                new.append(fault)
        self._unchecked |= bool(new)
        if new and trainer.is_global_zero:
            written: list[Fault] = []
            with forgiving(self.file):
                written = write_down(self.file, new, trainer.global_step)
            if written and trainer.global_step:  # the others were warned of by whoever opened the split
                shown = ", ".join(f"{fault.path} ({fault.cause})" for fault in written[:3])
                rank_zero_warn(
                    f"{len(written)} samples cannot be read, others stand in for them: {shown}. See {self.file}"
                )


def write_down(file: Path, faults: Iterable[Fault], step: int = 0) -> list[Fault]:
    """Add to a quarantine file those of the faults that are not in it yet; these."""
    known = set()
    written = file.read_text(encoding="utf-8") if file.is_file() else ""
    for line in written.splitlines():
        with contextlib.suppress(ValueError):  # half a line: the run was killed while it wrote
            row = json.loads(line)
            known.add((row["path"], row["cause"]))
    new = [fault for fault in dict.fromkeys(faults) if (fault.path, fault.cause) not in known]
    if new:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a", encoding="utf-8") as stream:
            stream.write("" if written.endswith("\n") or not written else "\n")
            for fault in new:
                stream.write(
                    json.dumps({"path": fault.path, "cause": fault.cause, "step": step}, ensure_ascii=False) + "\n"
                )
    return new
