"""Logs bad samples to quarantine.jsonl and stops the run when their share exceeds `data.max_bad`."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn

from velm.data.bad_samples import BadSample, raise_if_too_many
from velm.errors import BadDataError, MissingSplitError
from velm.outputs import Batch
from velm.training.distributed.gather import gather_list
from velm.training.recovery.writing import forgiving

__all__ = ["FILE", "Quarantine", "write_down"]

FILE = "quarantine.jsonl"


class Quarantine(Callback):
    """Writes `quarantine.jsonl` in the run's folder: {"path": ..., "cause": ..., "step": ...}, one line per bad sample.

    Bad samples found while a split is opened are written before the first step, those found by reading with the step
    that found them: the loaders collect them beside the batches (`Loader.take_bad_samples`). On several devices rank 0
    writes for all, every `log_every_n_steps` steps; a resumed run appends.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / FILE
        self.bad_samples: dict[str, dict[tuple[str, str], BadSample]] = {"train": {}, "val": {}}
        self._pending: list[tuple[str, BadSample]] = []
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
                    write_down(self.file, error.bad_samples)
                raise
            self._pending += [(split, bad_sample) for bad_sample in getattr(records, "bad_samples", ())]

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        known, self._pending = list(self._pending), []
        self._take(trainer, known)  # every rank has opened the same

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self._take_from("train", trainer.train_dataloader)
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
        self._take_from("val", trainer.val_dataloaders)

    def _take_from(self, split: str, loader: Any) -> None:
        self._pending += [(split, bad_sample) for bad_sample in loader.take_bad_samples()]

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
        for split, bad_samples in self.bad_samples.items():
            if not bad_samples:
                continue
            try:
                records = data.records(split)
                raise_if_too_many(list(bad_samples.values()), len(records), data.max_bad, f"split {split!r}")
            except BadDataError as error:
                raise BadDataError(f"{error} All of them: {self.file}", error.bad_samples) from None

    def _collect(self, trainer: lightning.Trainer) -> None:
        found, self._pending = gather_list(self._pending), []
        self._take(trainer, found)

    def _take(self, trainer: lightning.Trainer, found: Sequence[tuple[str, BadSample]]) -> None:
        new = []
        for split, bad_sample in found:
            key = (bad_sample.path, bad_sample.cause)
            if key not in self.bad_samples[split]:
                self.bad_samples[split][key] = bad_sample
                new.append(bad_sample)
        self._unchecked |= bool(new)
        if new and trainer.is_global_zero:
            written: list[BadSample] = []
            with forgiving(self.file):
                written = write_down(self.file, new, trainer.global_step)
            if written and trainer.global_step:  # the others were warned of by whoever opened the split
                shown = ", ".join(f"{bad_sample.path} ({bad_sample.cause})" for bad_sample in written[:3])
                rank_zero_warn(
                    f"{len(written)} samples cannot be read, others stand in for them: {shown}. See {self.file}"
                )


def write_down(file: Path, bad_samples: Iterable[BadSample], step: int = 0) -> list[BadSample]:
    """Add to a quarantine file those of the bad_samples that are not in it yet; these."""
    known = set()
    written = file.read_text(encoding="utf-8") if file.is_file() else ""
    for line in written.splitlines():
        with contextlib.suppress(ValueError):  # half a line: the run was killed while it wrote
            row = json.loads(line)
            known.add((row["path"], row["cause"]))
    new = [bad_sample for bad_sample in dict.fromkeys(bad_samples) if (bad_sample.path, bad_sample.cause) not in known]
    if new:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a", encoding="utf-8") as stream:
            stream.write("" if written.endswith("\n") or not written else "\n")
            for bad_sample in new:
                stream.write(
                    json.dumps({"path": bad_sample.path, "cause": bad_sample.cause, "step": step}, ensure_ascii=False)
                    + "\n"
                )
    return new
