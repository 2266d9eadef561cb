"""`EvaluationSteps`, what a Lightning module of a model does in validation, test and predict."""

from __future__ import annotations

import lightning

from velm.losses.weighted import WeightedLosses
from velm.model import VisionLanguageModel
from velm.outputs import Batch
from velm.pipeline import Pipeline
from velm.training.blind import BlindScores, blind_scores
from velm.training.config import ValidationConfig
from velm.training.distributed import fsdp as sharding
from velm.training.distributed.gather import gather_list
from velm.training.validation import SplitScores

__all__ = ["EvaluationSteps"]


class EvaluationSteps(lightning.LightningModule):
    """Validation and test log the metrics of a split, predict captions it; all ranks share the images.

    Attributes:
        model, losses, needs: of the run.
        validation_config: how much a validation measures.
        sharded: whether FSDP2 has sharded the weights.
        scores: of the split that is measured, by its name.
        blind: the same without images, where they are asked for.
        predictions: after predict, {index in the split: {'image_id': ..., 'caption': ...}}.
    """

    model: VisionLanguageModel
    losses: WeightedLosses
    validation_config: ValidationConfig
    sharded: bool

    def __init__(self) -> None:
        super().__init__()
        self.scores: dict[str, SplitScores] = {}
        self.blind: dict[str, BlindScores | None] = {}
        self.predictions: dict[int, dict[str, str]] = {}

    @property
    def needs(self) -> frozenset[str]:
        """The model outputs that the losses require."""
        return self.losses.requires

    def on_validation_epoch_start(self) -> None:
        self._start_scores("val")

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        self._update_scores("val", batch)

    def on_validation_epoch_end(self) -> None:
        self._log_scores("val")

    def on_test_epoch_start(self) -> None:
        self._start_scores("test")

    def test_step(self, batch: Batch, batch_index: int) -> None:
        self._update_scores("test", batch)

    def on_test_epoch_end(self) -> None:
        self._log_scores("test")

    def on_predict_epoch_start(self) -> None:
        self.predictions = {}
        self._start_scores("test")

    def predict_step(self, batch: Batch, batch_index: int) -> list[dict[str, str]]:
        """Captions of the batch's images: {'image_id': ..., 'caption': ...}."""
        if not batch.samples:
            return []
        rows = self.scores["test"].captions_of(batch)
        self.predictions |= dict(zip(batch.image_ids.tolist(), rows, strict=True))
        return rows

    def on_predict_epoch_end(self) -> None:
        """Gather the ranks' captions into `predictions`, {index in the split: row}, in the order of the split."""
        self.predictions = dict(sorted(gather_list(list(self.predictions.items()))))
        if self.sharded:
            sharding.reshard(self.model)

    def _start_scores(self, split: str) -> None:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        pipeline = Pipeline(
            model=self.model,
            tokenizer=data.tokenizer,
            transform=data.eval_transform,
            max_length=data.max_length,
            device=self.device,
        )
        if self.sharded:
            sharding.unshard(self.model)
        losses = self.losses if data.teacher(split) is not None else self.losses.without_teacher()
        self.scores[split] = SplitScores(pipeline, data.records(split), losses, self.validation_config, self.needs)
        self.blind[split] = blind_scores(self.scores[split])

    def _update_scores(self, split: str, batch: Batch) -> None:
        if batch.samples:  # else none of its images could be read, or the split has fewer images than ranks
            for scores in (self.scores[split], self.blind[split]):
                if scores is not None:
                    scores.update(batch)

    def _log_scores(self, split: str) -> None:
        metrics, blind = self.scores[split].compute(), self.blind[split]
        if blind is not None:
            metrics |= blind.compute()
        if self.sharded:
            sharding.reshard(self.model)
        if not self.trainer.sanity_checking:
            self.log_dict({f"{split}/{name}": float(value) for name, value in metrics.items()})
