"""What a run prints: the parameters by part, one progress line, a line for each validation, and the closing lines."""

from __future__ import annotations

import contextlib
import math
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback, ModelSummary, ProgressBar
from tqdm import tqdm

from velm.training.recovery.changes import asked_limits
from velm.training.recovery.checkpoint_io import LAST, exists, is_url, join
from velm.training.recovery.run_checkpoints import BEST, RunCheckpoint

HEADLINE = ("image_to_text/recall@1", "text_to_image/recall@1", "caption/bleu4", "caption/cider", "blind/caption/cider")
REFRESH = 0.2
"""Seconds between two updates of the line; reading the loss waits for the device."""


class ProgressLine(ProgressBar):
    """One line on stderr: epoch, loss, val/score, optimizer steps and time left; nothing where stderr is no terminal.

    epoch 2/10  loss 3.214  val/score 0.412 |████▌           | 120/960 [01:32 left]
    """

    def __init__(self) -> None:
        super().__init__()
        self.bar: tqdm | None = None
        self.enabled, self.updated = True, 0.0

    @property
    def is_enabled(self) -> bool:
        """Whether Lightning prints through this bar."""
        return self.enabled

    def disable(self) -> None:
        self.enabled = False

    def enable(self) -> None:
        self.enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print above the line."""
        if self.bar is None:
            print(*args, **kwargs)
        else:
            with tqdm.external_write_mode(file=sys.stdout):
                print(*args, **kwargs)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        total = float(trainer.estimated_stepping_batches)
        self._open(total, trainer.global_step, f"epoch {trainer.current_epoch + 1}")

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        if self.bar is None or perf_counter() - self.updated < REFRESH:
            return
        self._show_training(trainer)

    def on_validation_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        if not trainer.sanity_checking and self.bar is not None:
            self._show_training(trainer)

    def _show_training(self, trainer: lightning.Trainer) -> None:
        last = "" if trainer.max_epochs in (None, -1) else f"/{trainer.max_epochs}"
        metrics = {"loss": "train/loss", "val/score": "val/score"}
        values = {label: trainer.callback_metrics.get(name) for label, name in metrics.items()}
        shown = [f"{label} {float(value):.3f}" for label, value in values.items() if value is not None]
        self._update(trainer.global_step, "  ".join([f"epoch {trainer.current_epoch + 1}{last}", *shown]))

    def on_train_end(self, *_: Any) -> None:
        self._close()

    def on_exception(self, *_: Any) -> None:
        self._close()

    def on_test_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        self._open_evaluation(trainer.num_test_batches, "test")

    def on_predict_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        self._open_evaluation(trainer.num_predict_batches, "predict")

    def on_validation_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        if trainer.state.fn == "validate":
            self._open_evaluation(trainer.num_val_batches, "validate")

    def on_test_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._update(batch_idx + 1)

    on_predict_batch_end = on_test_batch_end

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if trainer.state.fn == "validate":
            self._update(batch_idx + 1)

    def teardown(self, *_: Any, **__: Any) -> None:
        self._close()

    def _open_evaluation(self, batches: Any, name: str) -> None:
        self._open(float(sum(batches)), 0, name)

    def _open(self, total: float, done: int, text: str) -> None:
        self._close()
        if self.enabled and sys.stderr.isatty():
            form = "{desc} |{bar}| {n_fmt}/{total_fmt} [{remaining} left]"
            steps = int(total) if math.isfinite(total) else None
            self.bar = tqdm(total=steps, initial=done, desc=text, dynamic_ncols=True, leave=False, bar_format=form)

    def _update(self, done: int, text: str | None = None) -> None:
        if self.bar is None:
            return
        self.updated = perf_counter()
        if text is not None:
            self.bar.set_description_str(text, refresh=False)
        self.bar.n = done
        self.bar.refresh()

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


class ParameterSummary(ModelSummary):
    """Prints the number of parameters of each part, and which parts are frozen."""

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if trainer.is_global_zero:
            print("\n".join(parameter_lines(pl_module)))


def parameter_lines(task: Any) -> list[str]:
    """A line for each part of a task that has parameters, and the total; a shared parameter counts once."""
    counted: set[int] = set()
    rows, total, trained = [], 0, 0
    for name, part in task.parts.items():
        new = [parameter for parameter in part.parameters() if id(parameter) not in counted]
        counted |= {id(parameter) for parameter in new}
        size = sum(parameter.numel() for parameter in new)
        trainable = sum(parameter.numel() for parameter in new if parameter.requires_grad)
        total, trained = total + size, trained + trainable
        if size:
            note = "" if trainable == size else "  frozen" if not trainable else f"  {trainable:,} trained"
            rows.append((name, f"{size:,}", note))
    rows.append(("parameters", f"{total:,}", "" if trained == total else f"  {trained:,} trained"))
    return [f"{name:<18}{size:>15}{note}" for name, size, note in rows]


class PrintResults(Callback):
    """Prints a line after each validation and, at the end, where the run's files are and what to type next.

    Args:
        monitor: the metric that selects best.ckpt.
        folder: of the run.
        checkpoints: folder or URL of best.ckpt and last.ckpt.
    """

    def __init__(self, monitor: str, folder: str | Path, checkpoints: str) -> None:
        self.monitor, self.best = monitor, -math.inf
        self.folder, self.checkpoints = Path(folder), checkpoints
        self.trained = False

    def on_train_batch_end(self, *_: Any) -> None:
        self.trained = True

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        metrics = trainer.callback_metrics
        if trainer.sanity_checking or not trainer.is_global_zero or self.monitor not in metrics:
            return
        score = float(metrics[self.monitor])
        best = max([score, self.best, *self._saved(trainer)])
        self.best = best
        loss = f"val/loss {float(metrics['val/loss']):.3f}  " if "val/loss" in metrics else ""
        place = f"epoch {trainer.current_epoch + 1}  step {trainer.global_step}"
        pl_module.print(f"{place}  {loss}{self.monitor} {score:.3f}  best so far {best:.3f}{without_image(metrics)}")

    def _saved(self, trainer: lightning.Trainer) -> list[float]:
        """The score of best.ckpt, which a resumed run has from its checkpoint."""
        saved = [c.best_model_score for c in trainer.checkpoint_callbacks
                 if isinstance(c, RunCheckpoint) and c.monitor == self.monitor]  # fmt: skip
        return [float(score) for score in saved if score is not None]

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if getattr(trainer, "fast_dev_run", False) or not trainer.is_global_zero:
            return
        if not self.trained:
            print(nothing_trained(trainer))
            return
        metrics = ", ".join(
            f"{name.removeprefix('val/')} {float(value):.3f}"
            for name, value in sorted(trainer.callback_metrics.items())
            if name.removeprefix("val/") in HEADLINE
        )
        print("\n" + textwrap.fill(f"Last validation: {metrics or 'none'}", 80, break_on_hyphens=False))
        folder = _from_here(self.folder)
        checkpoint = next((path for name in (BEST, LAST) if exists(path := join(self.checkpoints, name))), None)
        files = [name for name in ("config.yaml", "metrics.csv", BEST, LAST) if (self.folder / name).exists()]
        print(f"The run is in {folder}/: {', '.join([*files, '...'])}")
        if checkpoint is None:
            return
        checkpoint = checkpoint if is_url(checkpoint) else str(_from_here(Path(checkpoint)))
        print(f"Next:  velm evaluate {checkpoint} --output {folder / 'evaluation'}")
        if getattr(pl_module.model, "decoder", None) is not None:
            print(f"       velm caption {checkpoint} IMAGE...")


def without_image(metrics: Mapping[str, Any]) -> str:
    """CIDEr-D of a validation with and without its images; '' where it is not measured."""
    with_image, blind = (metrics.get(f"val/{name}") for name in ("caption/cider", "blind/caption/cider"))
    if with_image is None or blind is None:
        return ""
    return f"  cider {float(with_image):.3f}, without the image {float(blind):.3f}"


def nothing_trained(trainer: lightning.Trainer) -> str:
    """What to print of a fit that took no step because its checkpoint has all the epochs or steps it asks for."""
    begun = f"step {trainer.global_step} of epoch {trainer.current_epoch}"
    where = f"{trainer.ckpt_path} is at {begun}" if trainer.ckpt_path else f"the run is at {begun}"
    start = f" To start a new run from its weights: --model.pretrained={trainer.ckpt_path}, without --ckpt_path."
    asked = " and ".join(f"trainer.{name} is {value}" for name, value in asked_limits(trainer).items())
    return (
        f"\nNothing was trained: {where}, and {asked or 'no batch is asked for'}. To go on: "
        f"--trainer.max_epochs (or max_steps) above that; it counts from the beginning of the run."
        f"{start if trainer.ckpt_path else ''}"
    )


def _from_here(path: Path) -> Path:
    """The path relative to the working folder, or the full path of one outside it."""
    with contextlib.suppress(ValueError):
        return path.resolve().relative_to(Path.cwd())
    return path
