"""Warns when a contrastive loss is stuck, embeddings or captions have collapsed, or the decoder ignores the image."""

from __future__ import annotations

import warnings
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from velm.losses.alignment import ContrastiveLoss
from velm.metrics.diversity import distinct_captions
from velm.metrics.retrieval import effective_rank
from velm.outputs import Batch
from velm.training.monitor.loggers import is_logged, log_metrics
from velm.training.tracking.guard import show
from velm.util import warn_on_oserror

if TYPE_CHECKING:
    from velm.training.validation import SplitScores

READINGS = 10
"""Logged steps over which a contrastive loss is averaged before it is called stuck."""
BLIND_READINGS = 2
"""Validations in a row whose captioning loss is not lower with the image before the alarm."""


class Alarms(Callback):
    """Warns, and tells `alarms.txt` in the run folder and the loggers, when an alarm starts and when it ends.

    Alarms start after the warm-up of the learning rate. `WatchConfig` holds the thresholds.
    """

    def __init__(self, folder: str | Path) -> None:
        self.file = Path(folder) / "alarms.txt"
        self.active: set[str] = set()
        self.readings: dict[str, deque[tuple[float, float]]] = {}
        self.step = -1
        self.unseen: dict[str, int] = {}  # validations in a row in which the image did not lower a loss

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Batch, *_: Any
    ) -> None:
        """Read the contrastive losses at logged steps, where the log reads them anyway."""
        step, limit = trainer.global_step, pl_module.watch_config.chance
        due, self.step = step != self.step and is_logged(trainer, step), step
        if not (due and limit and trainer.is_global_zero and _warm(trainer, pl_module)):
            return
        for name, loss in pl_module.losses.items():
            value = trainer.callback_metrics.get(f"train/{name}")  # None: its weight is 0
            if isinstance(loss, ContrastiveLoss) and value is not None:
                known = self.readings.setdefault(name, deque(maxlen=READINGS))
                extra = batch.hard_negatives.valid.sum(1) if batch.hard_negatives and loss.hard_negatives else 0
                known.append((float(value), uninformed(batch.image_ids, trainer.world_size, extra)))
                if len(known) == READINGS:
                    self._judge_loss(trainer, name, known, limit)

    def _judge_loss(
        self, trainer: lightning.Trainer, name: str, known: deque[tuple[float, float]], limit: float
    ) -> None:
        value, chance = (sum(column) / len(known) for column in zip(*known, strict=True))
        self.judge(
            trainer,
            name,
            value > (1 - limit) * chance,
            f"the {name} loss is {value:.3f} over the last {len(known)} logged steps, and that of an uninformed "
            f"model is {chance:.3f} (about ln B). Look at watch/{name}/grad_norm, val/effective_rank and whether "
            f"images and captions match (velm doctor). Try a lower model.optimizer.lr or a longer warmup, a larger "
            f"weight of {name}, or a trained encoder.",
        )

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        scores = getattr(pl_module, "scores", {}).get("val")
        if scores is None or trainer.sanity_checking or not trainer.is_global_zero:
            return
        metrics = collapse_metrics(scores)
        log_metrics(trainer, metrics, max(trainer.global_step - 1, 0))
        if _warm(trainer, pl_module):
            self._judge_embeddings(trainer, pl_module, scores, metrics)
            self._judge_captions(trainer, pl_module, scores, metrics)
            self._judge_blind(trainer, pl_module)

    def _judge_embeddings(
        self, trainer: lightning.Trainer, task: Any, scores: SplitScores, metrics: dict[str, float]
    ) -> None:
        for name, embeds in scores.embeds.items():
            rank, possible = metrics[f"val/effective_rank/{name}"], min(embeds.shape)
            self.judge(
                trainer,
                f"{name} embeddings",
                rank < 1 + task.watch_config.effective_rank * (possible - 1),
                f"the {len(embeds)} {name} embeddings of the validation use {rank:.1f} of {possible} directions "
                f"(val/effective_rank/{name}): they have collapsed. Look at val/*/recall@1 and train/logit_scale. Try "
                f"a lower model.optimizer.lr, a larger data.batch_size (more negatives), or a smaller weight of the "
                f"other losses.",
            )

    def _judge_captions(
        self, trainer: lightning.Trainer, task: Any, scores: SplitScores, metrics: dict[str, float]
    ) -> None:
        if "val/distinct_captions" not in metrics:
            return
        share = metrics["val/distinct_captions"]
        right = distinct_captions([references[0] for references in scores.references()])
        self.judge(
            trainer,
            "captions",
            share < task.watch_config.distinct * right,
            f"of {len(scores.captions)} captions of the validation {share:.1%} are distinct (val/distinct_captions), "
            f"and {right:.1%} of the references are: the decoder does not look at the image. Look at panel.txt. Try "
            f"a lower learning rate or more epochs, more decoder (depth, dim), or a larger weight of captioning.",
        )

    def _judge_blind(self, trainer: lightning.Trainer, task: Any) -> None:
        logged, limit = trainer.callback_metrics, task.watch_config.blind
        for name in getattr(task, "losses", ()) if limit else ():
            if f"val/blind/{name}" not in logged:
                continue
            value, blind = float(logged[f"val/{name}"]), float(logged[f"val/blind/{name}"])
            self.unseen[name] = self.unseen.get(name, 0) + 1 if value > (1 - limit) * blind else 0
            self.judge(
                trainer,
                f"{name} without the image",
                self.unseen[name] >= BLIND_READINGS,
                f"the {name} loss of the validation is {value:.3f}, and {blind:.3f} with an image without content "
                f"(val/blind/{name}): the decoder does not look at the image. Look at panel.txt and velm explain. Try "
                f"more epochs, a higher learning rate of the decoder (of llm/*: of its projector), an image encoder "
                f"with better features, or with llm/* decoder.prefix_norm: match.",
            )

    def judge(self, trainer: lightning.Trainer, name: str, bad: bool, message: str) -> None:
        """Report an alarm when it starts and when it ends, not in between."""
        if bad == (name in self.active):
            return
        if bad:
            self.active.add(name)
            warnings.warn(f"Alarm: {message}", stacklevel=2)
        else:
            self.active.discard(name)
        text = message if bad else f"{name}: well again."
        with warn_on_oserror(self.file):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a", encoding="utf-8") as file:
                file.write(f"epoch {trainer.current_epoch} step {trainer.global_step}: {text}\n")
        step = max(trainer.global_step - 1, 0)
        show(trainer, lambda tracker: tracker.log_alarm(name, text, step, active=bad))


def uninformed(image_ids: Tensor, devices: int = 1, hard_negatives: Tensor | int = 0) -> float:
    """The contrastive loss when all similarities are equal: mean of ln(1 + negatives); ln B without duplicates.

    Args:
        image_ids: int64 (B,) of one device's batch; other devices are assumed to hold as many samples of other images.
        devices: number of devices.
        hard_negatives: int64 (B,), further negatives of each image, which its caption has not.
    """
    matches = (image_ids[:, None] == image_ids).sum(1)
    negatives = (devices * len(image_ids) - matches).double()
    return float((negatives.log1p() + (negatives + hard_negatives).log1p()).mean() / 2)


def collapse_metrics(scores: SplitScores) -> dict[str, float]:
    """Effective rank of each kind of embeddings and, if there are captions, the fraction of distinct ones."""
    metrics = {f"val/effective_rank/{name}": effective_rank(embeds) for name, embeds in scores.embeds.items()}
    if scores.captions:
        metrics["val/distinct_captions"] = distinct_captions(list(scores.captions.values()))
    return metrics


def _warm(trainer: lightning.Trainer, task: Any) -> bool:
    return trainer.global_step >= task.optimizer_config.warmup * trainer.estimated_stepping_batches
