"""Logs unreadable samples to quarantine.jsonl and stops the run when their share exceeds `max_bad`."""

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
from velm.util import warn_on_oserror

__all__ = ["Quarantine", "QuarantineFile"]


class QuarantineFile:
    """`quarantine.jsonl`, one line per unreadable sample: {"path": ..., "cause": ..., "step": ...}.

    A sample is written once, also when a resumed run meets it again: the lines of the file are read once, before the
    first write.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "quarantine.jsonl"
        self._written: set[tuple[str, str]] | None = None

    def append(self, bad_samples: Iterable[BadSample], step: int = 0) -> list[BadSample]:
        """Write the samples that are not in the file yet, and return them.

        Raises:
            OSError: the file cannot be written.
        """
        if self._written is None:
            self._written = self._read()
        new = [sample for sample in dict.fromkeys(bad_samples) if (sample.path, sample.cause) not in self._written]
        if new:
            rows = [{"path": sample.path, "cause": sample.cause, "step": step} for sample in new]
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as stream:
                stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            self._written |= {(sample.path, sample.cause) for sample in new}
        return new

    def _read(self) -> set[tuple[str, str]]:
        """(path, cause) of every line; a line that a killed run left incomplete is ended, and skipped."""
        content = self.path.read_text(encoding="utf-8") if self.path.is_file() else ""
        if content and not content.endswith("\n"):
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write("\n")
        written = set()
        for line in content.splitlines():
            with contextlib.suppress(ValueError):
                row = json.loads(line)
                written.add((row["path"], row["cause"]))
        return written


class Quarantine(Callback):
    """Logs the unreadable samples of a run and ends it when there are too many.

    Samples that opening a split rejects are logged before the first step, samples that fail to decode with the step
    that read them: loaders collect them beside the batches (`Loader.take_bad_samples`). On several
    devices rank 0 writes for all ranks, every `log_every_n_steps` steps.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.file = QuarantineFile(folder)
        self.bad_samples: dict[str, dict[tuple[str, str], BadSample]] = {"train": {}, "val": {}}
        self._pending: list[tuple[str, BadSample]] = []
        self._unchecked = False  # samples were added since the share was last compared with max_bad

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Open the splits, so that too many bad samples end the run before it trains.

        Raises:
            BadDataError: opening a split rejects more than `max_bad` of it.
        """
        if stage != "fit":
            return
        for split in ("train", "val") if trainer.limit_val_batches else ("train",):
            try:
                records = trainer.datamodule.records(split)  # type: ignore[attr-defined]
            except MissingSplitError:
                continue
            except BadDataError as error:
                if trainer.is_global_zero:
                    self.file.append(error.bad_samples)
                raise
            self._pending += [(split, bad_sample) for bad_sample in getattr(records, "bad_samples", ())]

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        rejected, self._pending = list(self._pending), []
        self._add(trainer, rejected)  # not gathered: every rank has opened the same splits

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
        """Log every bad sample of the steps that the checkpoint contains."""
        self._gather(trainer)

    def _check(self, trainer: lightning.Trainer) -> None:
        """Log new bad samples; raise BadDataError if they are more than `max_bad` of a split."""
        self._gather(trainer)
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
                raise BadDataError(f"{error} All of them: {self.file.path}", error.bad_samples) from None

    def _gather(self, trainer: lightning.Trainer) -> None:
        """Add the pending samples of all ranks."""
        pending, self._pending = gather_list(self._pending), []
        self._add(trainer, pending)

    def _add(self, trainer: lightning.Trainer, samples: Sequence[tuple[str, BadSample]]) -> None:
        """Keep the (split, sample) pairs that are new; rank 0 logs them, and warns if a step met them."""
        new = []
        for split, bad_sample in samples:
            key = (bad_sample.path, bad_sample.cause)
            if key not in self.bad_samples[split]:
                self.bad_samples[split][key] = bad_sample
                new.append(bad_sample)
        self._unchecked |= bool(new)
        if new and trainer.is_global_zero:
            written: list[BadSample] = []
            with warn_on_oserror(self.file.path):
                written = self.file.append(new, trainer.global_step)
            if written and trainer.global_step:  # at step 0 the dataset has already warned
                shown = ", ".join(f"{bad_sample.path} ({bad_sample.cause})" for bad_sample in written[:3])
                rank_zero_warn(
                    f"{len(written)} samples cannot be read and were replaced by others: {shown}. See {self.file.path}"
                )
