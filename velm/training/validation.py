"""What is measured at every validation: recall over the whole split, captions of its first images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from velm import metrics
from velm.data.base import Record
from velm.generation import GenerationConfig
from velm.losses.weighted import WeightedLosses
from velm.outputs import Batch, EncoderOutput
from velm.pipeline import Pipeline
from velm.training.config import ValidationConfig
from velm.training.distributed.gather import gather_list, gather_rows


class SplitScores:
    """Collects a split's embeddings and captions batch by batch, then turns them into figures.

    Images come once each, sharded over the ranks; their sentences are encoded at the end, sharded alike.

    Args:
        pipeline: the model as it stands, with the data's tokenizer.
        records: of the whole split.
        losses: what is trained.
        config: how much is measured.
        rank: which of the `world_size` processes this is.
        world_size: number of processes that share the split.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        records: Sequence[Record],
        losses: WeightedLosses,
        config: ValidationConfig,
        *,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.pipeline, self.records, self.losses, self.config = pipeline, records, losses, config
        self.rank, self.world_size = rank, world_size
        self.values: list[Tensor] = []
        self.image_embeds: list[Tensor] = []
        self.image_ids: list[Tensor] = []
        self.captions: dict[int, str] = {}
        self.embeds: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, batch: Batch) -> None:
        """Take in a batch that holds each image once, with its first sentence."""
        output = self.pipeline.model(batch, self.losses.requires)
        total, parts = self.losses(output, batch)
        self.values.append(torch.stack([total, *parts.values(), total.new_tensor(len(batch))]))
        self.image_ids.append(batch.image_ids)
        if output.image_embeds is not None:
            self.image_embeds.append(output.image_embeds.float())
        if output.decoder is not None:
            rows = (batch.image_ids < self.config.captions).nonzero().flatten()
            self._caption(batch.image_ids, output.image, output.text, rows)

    @torch.no_grad()
    def captions_of(self, batch: Batch) -> list[dict[str, str]]:
        """Greedy captions of every image of a batch: {'image_id': ..., 'caption': ...}."""
        output = self.pipeline.model(batch, {"decoder"})
        ids = batch.image_ids
        self._caption(ids, output.image, output.text, torch.arange(len(ids), device=ids.device))
        return [{"image_id": self.records[i].image_id, "caption": self.captions[i]} for i in ids.tolist()]

    def _caption(self, ids: Tensor, image: EncoderOutput | None, text: EncoderOutput | None, rows: Tensor) -> None:
        if len(rows) == 0:
            return
        image, text = (None if output is None else output.select(rows) for output in (image, text))
        written = self.pipeline.write(image, text, GenerationConfig(max_length=self.config.max_length))
        self.captions |= {row: best.text for row, (best, *_) in zip(ids[rows].tolist(), written, strict=True)}

    def compute(self) -> dict[str, float]:
        """The figures by the names of metrics.json, with `loss`, each loss, and `score`.

        `score`, by which the best checkpoint is chosen: the mean of the six recalls and of CIDEr-D, whichever
        there are (the mean of the two where both are).
        """
        figures = self._mean_losses()
        scores = []
        if self.image_embeds:
            figures |= self._retrieval()
            scores.append(sum(value for name, value in figures.items() if "recall@" in name) / 6)
        self.captions = dict(gather_list(list(self.captions.items())))
        if self.captions:
            figures |= self._captioning()
            scores.append(figures["caption/cider"])
        figures["score"] = sum(scores) / len(scores) if scores else -figures["loss"]
        return figures

    def _mean_losses(self) -> dict[str, float]:
        rows = gather_rows(torch.stack(self.values)).double().cpu()
        means = (rows[:, :-1] * rows[:, -1:]).sum(0) / rows[:, -1].sum()
        return dict(zip(["loss", *self.losses], means.tolist(), strict=True))

    def _retrieval(self) -> dict[str, float]:
        """Every image seen against every sentence of theirs; a rank embeds its share of the sentences."""
        image_embeds = gather_rows(torch.cat(self.image_embeds)).cpu()
        seen = gather_rows(torch.cat(self.image_ids)).tolist()
        limit = self.config.texts_per_image or None
        texts = [(row, text) for row, i in enumerate(seen) for text in self.records[i].texts[:limit]]
        mine = texts[self.rank :: self.world_size]
        text_embeds = gather_rows(self.pipeline.embed_texts([text for _, text in mine]).float())
        self.embeds = {"image": image_embeds, "text": text_embeds.cpu()}
        owners = gather_rows(torch.tensor([row for row, _ in mine]))
        return metrics.retrieval_metrics(image_embeds, text_embeds, owners)

    def _right(self, record: Record) -> list[str]:
        """What would have been right: for a decoder that reads the first text, that text's targets only."""
        if record.targets is None or "text" not in self.pipeline.model.memory_sources:
            return list(record.targets or record.texts)
        return [right for text, right in zip(record.texts, record.targets, strict=True) if text == record.texts[0]]

    def references(self) -> list[list[str]]:
        """What would have been right for each caption, in the order of `sorted(captions)`."""
        return [self._right(self.records[row]) for row in sorted(self.captions)]

    def _captioning(self) -> dict[str, float]:
        rows, references = sorted(self.captions), self.references()
        return metrics.caption_metrics([self.captions[row] for row in rows], references)
