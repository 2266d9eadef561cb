"""What is measured at every validation: recall over the whole split, captions of its first pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from velm import metrics
from velm.data.base import Record
from velm.data.collate import cut, pad_tokens
from velm.data.tokenizers import Tokenizer
from velm.generation import GenerationConfig, generate
from velm.outputs import Batch, VisionLanguageOutput
from velm.training.distributed import gather_list, gather_rows

if TYPE_CHECKING:
    from velm.training.task import VisionLanguageTask


@dataclass
class ValidationConfig:
    """What a validation costs.

    Args:
        captions: number of pictures that are captioned, greedily, for BLEU, ROUGE-L, CIDEr-D.
        texts_per_image: sentences of a picture that enter the retrieval gallery; 0 for all of them.
        panel: number of pictures whose captions are logged as text and pictures.
        max_length: longest caption in tokens, its eos included.
    """

    captions: int = 200
    texts_per_image: int = 0
    panel: int = 8
    max_length: int = 32


class SplitScores:
    """Collects a split's embeddings and captions batch by batch, then turns them into figures.

    Pictures come once each, sharded over the ranks; their sentences are encoded at the end, sharded alike.
    """

    def __init__(
        self, task: VisionLanguageTask, records: Sequence[Record], tokenizer: Tokenizer, config: ValidationConfig
    ) -> None:
        self.task, self.records, self.tokenizer, self.config = task, records, tokenizer, config
        self.losses: list[Tensor] = []
        self.image_embeds: list[Tensor] = []
        self.image_ids: list[Tensor] = []
        self.captions: dict[int, str] = {}

    @torch.no_grad()
    def update(self, batch: Batch) -> None:
        """Take in a batch that holds each picture once, with its first sentence."""
        output = self.task.model(batch, self.task.needs)
        values = [self.task.weights[name] * loss(output, batch) for name, loss in self.task.losses.items()]
        parts = torch.stack([value / self.task.weights[name] if self.task.weights[name] else value
                             for name, value in zip(self.task.losses, values, strict=True)])  # fmt: skip
        self.losses.append(torch.cat([torch.stack(values).sum()[None], parts, parts.new_tensor([len(batch)])]))
        self.image_ids.append(batch.image_ids)
        if output.image_embeds is not None:
            self.image_embeds.append(output.image_embeds.float())
        if output.decoder is not None:
            self._caption(batch, output, limit=self.config.captions)

    def captions_of(self, batch: Batch) -> list[dict[str, str]]:
        """Greedy captions of every picture of a batch."""
        with torch.no_grad():
            output = self.task.model(batch, {"decoder"})
            self._caption(batch, output, limit=None)
        ids = batch.image_ids.tolist()
        return [{"image_id": self.records[i].image_id, "caption": self.captions[i]} for i in ids]

    def _caption(self, batch: Batch, output: VisionLanguageOutput, limit: int | None) -> None:
        rows = torch.arange(len(batch), device=batch.image_ids.device)
        if limit is not None:
            rows = rows[batch.image_ids < limit]
        if len(rows) == 0:
            return
        memory, mask = self.task.model.memory(output.image, output.text)
        decoder, tokenizer = self.task.model.decoder, self.tokenizer
        assert decoder is not None
        generated = generate(
            decoder, memory[rows], None if mask is None else mask[rows],
            bos_id=tokenizer.bos_id, eos_id=tokenizer.eos_id, pad_id=tokenizer.pad_id,
            config=GenerationConfig(max_length=self.config.max_length),
            suppress=(tokenizer.pad_id, tokenizer.bos_id, tokenizer.unk_id),
        )  # fmt: skip
        for row, tokens in zip(batch.image_ids[rows].tolist(), generated.tokens[:, 0].tolist(), strict=True):
            self.captions[row] = tokenizer.decode(tokens)

    def compute(self) -> dict[str, float]:
        """The figures by the names of metrics.json, with `loss`, each loss, and `score`.

        `score`, by which the best checkpoint is chosen: the mean of the six recalls and of CIDEr-D, whichever
        there are (the mean of the two where both are).
        """
        figures = self._losses()
        seen = gather_rows(torch.cat(self.image_ids)).cpu()
        scores = []
        if self.image_embeds:
            embeds = gather_rows(torch.cat(self.image_embeds)).cpu()
            figures |= self._retrieval(embeds, seen)
            scores.append(sum(v for k, v in figures.items() if "recall@" in k) / 6)
        captions = dict(gather_list(list(self.captions.items())))
        if captions:
            figures |= self._captioning(captions)
            scores.append(figures["caption/cider"])
        self.captions = captions
        figures["score"] = sum(scores) / len(scores) if scores else -figures["loss"]
        return figures

    def _losses(self) -> dict[str, float]:
        rows = gather_rows(torch.stack(self.losses)).double().cpu()
        means = (rows[:, :-1] * rows[:, -1:]).sum(0) / rows[:, -1].sum()
        return dict(zip(["loss", *self.task.losses], means.tolist(), strict=True))

    def _retrieval(self, image_embeds: Tensor, seen: Tensor) -> dict[str, float]:
        limit = self.config.texts_per_image or None
        texts = [(row, text) for row, i in enumerate(seen.tolist()) for text in self.records[i].texts[:limit]]
        rank, world = self.task.global_rank, self.task.trainer.world_size
        mine = texts[rank::world]
        embeds = self._embed([text for _, text in mine])
        text_embeds = gather_rows(embeds).cpu()
        owners = gather_rows(torch.tensor([row for row, _ in mine]))
        return metrics.retrieval_metrics(image_embeds, text_embeds, owners)

    @torch.no_grad()
    def _embed(self, texts: list[str], batch_size: int = 256) -> Tensor:
        """Sentences sorted by length, so that little is padded; embeddings in the order given, float (n, E)."""
        limit = self.task.trainer.datamodule.max_length  # type: ignore[attr-defined]
        encoded = [cut(self.tokenizer.encode(text), limit) for text in texts]
        order = sorted(range(len(texts)), key=lambda i: len(encoded[i]))
        embeds: list[Tensor] = []
        for start in range(0, len(order), batch_size):
            tokens, mask = pad_tokens([encoded[i] for i in order[start : start + batch_size]], self.tokenizer.pad_id)
            text = self.task.model.encode_text(tokens.to(self.task.device), mask.to(self.task.device))
            embeds.append(self.task.model.embed_text(text).float())
        inverse = torch.empty(len(order), dtype=torch.long)
        inverse[torch.tensor(order, dtype=torch.long)] = torch.arange(len(order))
        return torch.cat(embeds)[inverse]

    def _captioning(self, captions: dict[int, str]) -> dict[str, float]:
        rows = sorted(captions)
        hypotheses = [captions[row] for row in rows]
        references = [list(self.records[row].targets or self.records[row].texts) for row in rows]
        return metrics.caption_metrics(hypotheses, references)
