"""Validation metrics: losses, recall over the whole split, and metrics of the captions of its first images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from velm.data.base import Record, questions, validation_text
from velm.errors import DataError
from velm.generation import GenerationConfig
from velm.losses.weighted import WeightedLosses
from velm.metrics.modules import CaptionMetrics, RetrievalMetrics, RowMetric
from velm.outputs import Batch, VisionLanguageOutput
from velm.pipeline import Pipeline
from velm.training.config import ValidationConfig


class SplitScores:
    """Collects embeddings and captions of a split batch by batch and computes metrics over all ranks.

    Each image comes once, on one rank; a rank may have none. Each rank embeds the captions of its own images.

    Args:
        pipeline: the model in its present state, with the tokenizer of the data.
        losses: those to compute, without distillation where the data has no teacher.
        requires: outputs to compute; None: those that the losses require.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        records: Sequence[Record],
        losses: WeightedLosses,
        config: ValidationConfig,
        requires: frozenset[str] | None = None,
    ) -> None:
        self.pipeline, self.records, self.losses, self.config = pipeline, records, losses, config
        self.requires = losses.requires if requires is None else requires
        self.batches: list[Tensor] = []  # loss, each loss; numbers of images, embeddings, captions
        self.image_embeds: list[Tensor] = []
        self.image_ids: list[int] = []
        self.captions: dict[int, str] = {}
        self.embeds: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, batch: Batch) -> None:
        """Add a batch that holds each image once, with the caption that `validation_text` names."""
        output = self.pipeline.model(batch, self.requires)
        total, parts = self.losses(output, batch)
        self.image_ids += batch.image_ids.tolist()
        counts = [len(batch), 0, 0]
        if output.embeddings is not None:
            self.image_embeds.append(output.image_embeds.float())
            counts[1] = len(batch)
        if output.prediction is not None:
            rows = (batch.image_ids < self.config.captions).nonzero().flatten()
            self._caption(batch, output, rows)
            counts[2] = len(rows)
        self.batches.append(torch.stack([total.to(self.pipeline.device), *parts.values(), *total.new_tensor(counts)]))

    @torch.no_grad()
    def captions_of(self, batch: Batch) -> list[dict[str, str]]:
        """Greedy captions of every image of a batch: {'image_id': ..., 'caption': ...}."""
        output = self.pipeline.model(batch, {"decoder"})
        ids = batch.image_ids
        self._caption(batch, output, torch.arange(len(ids), device=ids.device))
        return [{"image_id": self.records[i].image_id, "caption": self.captions[i]} for i in ids.tolist()]

    def _caption(self, batch: Batch, output: VisionLanguageOutput, rows: Tensor) -> None:
        if len(rows) == 0:
            return
        image, text = (None if each is None else each.select(rows) for each in (output.image, output.text))
        prompt = None if batch.prompt is None else batch.prompt.select(rows)
        written = self.pipeline.write(image, text, GenerationConfig(max_length=self.config.max_length), prompt)
        ids = batch.image_ids[rows].tolist()
        self.captions |= {row: best.text for row, (best, *_) in zip(ids, written, strict=True)}

    def compute(self) -> dict[str, float]:
        """The metrics by the keys of metrics.json, with `loss`, each loss, and `score`; the same on all ranks.

        After it, `embeds` (float (n, E), (m, E), on the CPU) and `captions` are those of all ranks.

        `score`, which selects the best checkpoint, is the mean of the six recalls or CIDEr-D, or the mean of the two
        if both exist; minus the loss if neither does.
        """
        metrics, embedded, captioned = self._losses()
        scores = []
        if embedded:
            metrics |= self._retrieval()
            scores.append(sum(value for name, value in metrics.items() if "recall@" in name) / 6)
        if captioned:
            metrics |= self._captioning()
            scores.append(metrics["caption/cider"])
        metrics["score"] = sum(scores) / len(scores) if scores else -metrics["loss"]
        return metrics

    def _losses(self) -> tuple[dict[str, float], bool, bool]:
        """The mean over images of each loss; whether any rank has embeddings, and captions."""
        rows = _Batches().to(self.pipeline.device)
        rows.update(self.batches)
        table = rows.compute().reshape(-1, len(self.losses) + 4).double().cpu()
        values, images = table[:, :-3], table[:, -3:-2]
        sums = [math.fsum(column) for column in (values * images).T.tolist()]  # exact: independent of the order
        means = [total / float(images.sum()) for total in sums]
        embedded, captioned = table[:, -2:].sum(0).bool().tolist()
        return dict(zip(["loss", *self.losses], means, strict=True)), embedded, captioned

    def _retrieval(self) -> dict[str, float]:
        """Metrics of all images against all of their captions."""
        limit = self.config.texts_per_image or None
        texts = [(row, text) for row, i in enumerate(self.image_ids) for text in self.records[i].texts[:limit]]
        rows = torch.tensor([row for row, _ in texts], dtype=torch.long)
        retrieval = RetrievalMetrics().to(self.pipeline.device)
        if texts:
            text_embeds = self.pipeline.embed_texts([text for _, text in texts]).float()
            image_embeds = torch.cat(self.image_embeds).cpu()[rows]
            retrieval.update(image_embeds, text_embeds, torch.tensor(self.image_ids)[rows])
        else:
            retrieval.update(torch.empty(0, 1), torch.empty(0, 1), rows)
        metrics = retrieval.compute()
        self.embeds = {"image": retrieval.image_embeds.cpu(), "text": retrieval.text_embeds.cpu()}
        return metrics

    def references_of(self, row: int) -> list[str]:
        """References of record `row`; a decoder that reads the text has the targets of that text only."""
        record = self.records[row]
        if record.targets is None or "text" not in self.pipeline.model.reads:
            return list(record.targets or record.texts)
        read = validation_text(record, row)
        return list(questions(record)[record.texts[read], record.history(read)])

    def references(self) -> list[list[str]]:
        """The references of each caption, in the order of `sorted(captions)`."""
        return [self.references_of(row) for row in sorted(self.captions)]

    def _captioning(self) -> dict[str, float]:
        """Metrics of the captions of all ranks."""
        rows = sorted(self.captions)
        captioning = CaptionMetrics(tokenize=self.config.tokenize).to(self.pipeline.device)
        captioning.update([self.captions[row] for row in rows], self.references(), rows)
        metrics = captioning.compute()
        self.captions = captioning.captions
        return metrics


class _Batches(RowMetric):
    """Rows of numbers, one per batch, of all ranks."""

    columns: ClassVar = {"numbers": torch.float32}

    def update(self, batches: Sequence[Tensor]) -> None:
        self.append(numbers=torch.stack(list(batches)) if batches else torch.empty(0))

    def compute(self) -> Tensor:
        try:
            return self.column("numbers")
        except ValueError as error:
            raise DataError(
                "None of the samples of the split could be used, so there is nothing to measure: quarantine.jsonl in "
                "the run folder names each and its cause."
            ) from error
