"""What a run records besides its weights: metrics.csv, TensorBoard events, the caption panel."""

from __future__ import annotations

import csv
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from velm import _compat
from velm.data.base import Record
from velm.data.images.transforms import EvalTransform
from velm.training.tracking.guard import show
from velm.training.tracking.trackers import PanelRow
from velm.util import warn_on_oserror

if TYPE_CHECKING:
    from velm.training.validation import SplitScores


def logging_interval(trainer: lightning.Trainer) -> int:
    """Optimizer steps between two logged steps; 0: none is logged."""
    steps: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return steps


def is_logged(trainer: lightning.Trainer, step: int) -> bool:
    """Whether the metrics of the `step`-th optimizer step, counted from 1, go to the loggers."""
    return logging_interval(trainer) > 0 and step % logging_interval(trainer) == 0


def log_metrics(trainer: lightning.Trainer, metrics: dict[str, float], step: int) -> None:
    """Write a row to every logger, on rank 0; `Trainer.callback_metrics` does not change."""
    if trainer.is_global_zero:
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=step)


class CaptionPanel(Callback):
    """Writes captions of the same few validation images after every validation, so that a collapse is visible.

    They go to `panel.txt` in the run's folder and, with the images, to the loggers (`velm.training.tracking`).

    Args:
        folder: of the run.
    """

    def __init__(self, folder: str | Path) -> None:
        self.file = Path(folder) / "panel.txt"

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        scores = getattr(pl_module, "scores", {}).get("val")
        if scores is None or trainer.sanity_checking or not scores.captions or not trainer.is_global_zero:
            return
        rows = sorted(scores.captions)[: scores.config.panel]
        lines = [f"{scores.records[row].image_id}\t{scores.captions[row]}" for row in rows]
        distinct = len(set(scores.captions.values()))
        where = f"epoch {trainer.current_epoch} step {trainer.global_step}"
        head = f"{where}: {distinct} distinct captions of {len(scores.captions)}"
        with warn_on_oserror(self.file):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a", encoding="utf-8") as file:
                file.write("\n".join([head, *lines, "", ""]))
        if rows:
            shown, step = panel_of(scores, rows), trainer.global_step
            show(trainer, lambda tracker: tracker.log_panel(shown, step))


def panel_of(scores: SplitScores, rows: Sequence[int]) -> list[PanelRow]:
    """The captions of some records with small images."""
    transform = EvalTransform(image_size=128, resize="crop")
    panel = []
    for row in rows:
        record: Record = scores.records[row]
        references = scores.references_of(row)
        image = None if record.image is None else transform(record.image)
        panel.append(PanelRow(record.image_id, scores.captions[row], references[0] if references else "", image))
    return panel


class DeferredLogger:
    """Creates its files when the run begins, not when Lightning sets up: until then an earlier run is in the folder."""

    begun = False

    def begin(self) -> None:
        """Allow the logger to write; `ClaimRunFolder` calls it, and so does the first metric."""
        self.begun = True


class ResumableCSVLogger(DeferredLogger, CSVLogger):
    """`metrics.csv` in the run's folder; a resumed run appends to the rows of the file."""

    def __init__(self, folder: str | Path) -> None:
        path = Path(folder)
        super().__init__(save_dir=path.parent, name=path.name, version="", flush_logs_every_n_steps=50)

    @property
    @rank_zero_only
    def experiment(self) -> Any:
        if not self.begun or _compat.is_logger_open(self):
            return super().experiment if self.begun else None
        file = Path(self.log_dir) / "metrics.csv"
        kept = list(csv.DictReader(file.read_text(encoding="utf-8").splitlines())) if file.is_file() else []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "previous log files will be deleted": their rows are kept
            experiment = super().experiment
        experiment.metrics = [{key: value for key, value in row.items() if value} for row in kept]
        experiment.save()
        return experiment

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.begin()
        super().log_metrics(metrics, step)

    def save(self) -> None:
        """Rows that cannot be written stay in memory, and the next save tries again."""
        if not self.begun:
            return
        file = Path(self.log_dir) / "metrics.csv"
        size = file.stat().st_size if file.is_file() else None
        with warn_on_oserror(file):
            try:
                super().save()
            except OSError:
                if size is not None:
                    os.truncate(file, size)  # half a row
                raise


class EventLogger(DeferredLogger, TensorBoardLogger):
    """TensorBoard events; on a full disk events are lost and training continues."""

    @property
    @rank_zero_only
    def experiment(self) -> Any:
        return super().experiment if self.begun else None

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.begin()
        with warn_on_oserror(f"{self.log_dir}/events"):
            super().log_metrics(metrics, step)

    def save(self) -> None:
        if not self.begun:
            return
        with warn_on_oserror(f"{self.log_dir}/events"):
            super().save()

    def finalize(self, status: str) -> None:
        if not _compat.is_logger_open(self):  # a run that fails before its first step writes nothing
            return
        with warn_on_oserror(f"{self.log_dir}/events"):
            super().finalize(status)
