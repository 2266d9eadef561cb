"""The metrics as torchmetrics' classes: `update` batch by batch, `compute` over all devices together.

Every state is a flat list of numbers that torchmetrics gathers and joins ("cat"), so that devices may have seen
different numbers of rows, or none; figures are those of the plain functions on everything at once. Sentences travel as
the bytes of their JSON.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from velm.metrics.captioning import caption_metrics
from velm.metrics.classification import top_k_hits
from velm.metrics.clipscore import clip_score
from velm.metrics.retrieval import retrieval_metrics, unique_pictures

__all__ = ["CaptionMetrics", "ClipScore", "RetrievalMetrics", "TopKAccuracy"]


class _Rows(Metric):
    """What has been seen, column by column; a device that saw nothing joins in with nothing."""

    full_state_update = False
    columns: ClassVar[dict[str, torch.dtype]]

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for name in self.columns:
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def append(self, **values: Tensor) -> None:
        for name, value in values.items():
            getattr(self, name).append(value.detach().to(self.device, self.columns[name]).flatten())

    def column(self, name: str) -> Tensor:
        """Everything of a column, (all,)."""
        values = getattr(self, name)  # a list until devices have been joined
        if not sum(map(len, values) if isinstance(values, list) else [len(values)]):
            raise ValueError(f"{type(self).__name__} has seen nothing: call update before compute.")
        return dim_zero_cat(values)

    def sync(self, *args: Any, **options: Any) -> None:
        """As torchmetrics', which would send floats for an empty list of whatever else."""
        for name, dtype in self.columns.items():
            if isinstance(getattr(self, name), list) and not getattr(self, name):
                setattr(self, name, [torch.empty(0, dtype=dtype, device=self.device)])
        super().sync(*args, **options)


class RetrievalMetrics(_Rows):
    """`velm.metrics.retrieval_metrics` of pairs that come in batches: any text of a picture is right for it.

    Args:
        ks: numbers of answers looked at.
        **options: torchmetrics': `sync_on_compute`, `process_group`, ...
    """

    columns: ClassVar = {
        "image": torch.float32,
        "text": torch.float32,
        "image_id": torch.int64,
        "text_id": torch.int64,
    }

    def __init__(self, *, ks: Sequence[int] = (1, 5, 10), **options: Any) -> None:
        super().__init__(**options)
        self.ks = tuple(ks)

    def update(
        self, image_embeds: Tensor, text_embeds: Tensor, image_ids: Tensor, text_ids: Tensor | None = None
    ) -> None:
        """A batch of pairs.

        Args:
            image_embeds, text_embeds: float (B, E), row i a pair.
            image_ids: int (B,), equal where the picture is the same, on whatever device and in whatever batch.
            text_ids: int (B,), >= 0, equal where the pair is the same, which then counts once: samplers that fill up
                the last batch of a device repeat some. None: none comes twice.
        """
        if not image_embeds.shape == text_embeds.shape == (len(image_ids), image_embeds.shape[-1]):
            raise ValueError(
                f"image_embeds {tuple(image_embeds.shape)}, text_embeds {tuple(text_embeds.shape)} and image_ids "
                f"{tuple(image_ids.shape)} are to be (B, E), (B, E) and (B,): a row a pair."
            )
        texts = torch.full_like(image_ids, -1) if text_ids is None else text_ids
        self.append(image=image_embeds, text=text_embeds, image_id=image_ids, text_id=texts)

    def compute(self) -> dict[str, float]:
        """The figures by the names of metrics.json."""
        ids, texts = self.column("image_id"), self.column("text_id")
        image, text = (self.column(name).reshape(len(ids), -1) for name in ("image", "text"))
        rows = _first(texts)
        pictures, owners = unique_pictures(image[rows], ids[rows])
        return retrieval_metrics(pictures, text[rows], owners, self.ks)


class CaptionMetrics(_Rows):
    """`velm.metrics.caption_metrics` of captions that come in batches, over the corpus of all devices.

    Args:
        **options: torchmetrics'.
    """

    columns: ClassVar = {"lines": torch.uint8}

    def update(
        self, hypotheses: Sequence[str], references: Sequence[Sequence[str]], image_ids: Sequence[Any] | None = None
    ) -> None:
        """A batch of captions.

        Args:
            hypotheses: one sentence a picture.
            references: the right sentences of each.
            image_ids: whatever tells pictures apart; one that comes again counts once. None: none comes twice.
        """
        names = [None] * len(hypotheses) if image_ids is None else [str(name) for name in image_ids]
        if not len(hypotheses) == len(references) == len(names):
            raise ValueError(
                f"{len(hypotheses)} hypotheses, {len(references)} lists of references and {len(names)} image_ids: "
                f"it takes one of each a picture."
            )
        rows = zip(names, hypotheses, map(list, references), strict=True)
        text = "".join(json.dumps(row) + "\n" for row in rows)  # ASCII, a line each
        self.append(lines=torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8) if text else torch.empty(0))

    def compute(self) -> dict[str, float]:
        """The figures by the names of metrics.json."""
        lines = bytes(self.column("lines").cpu().numpy()).decode().splitlines()
        rows = {row[0] if row[0] is not None else place: row for place, row in enumerate(map(json.loads, lines))}
        return caption_metrics([row[1] for row in rows.values()], [row[2] for row in rows.values()])


class ClipScore(Metric):
    """The mean CLIPScore of captions that come in batches; see `velm.metrics.clipscore`."""

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_state("total", default=torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, image_embeds: Tensor, caption_embeds: Tensor) -> None:
        """Embeddings float (B, E) of pictures and of their captions."""
        scores = clip_score(image_embeds, caption_embeds)
        self.total += scores.double().sum()
        self.count += len(scores)

    def compute(self) -> float:
        """The mean, in [0, 2.5]; nan of nothing."""
        return float(self.total / self.count)


class TopKAccuracy(Metric):
    """Share of the pictures whose class is among the k best, ties against them; of zero-shot or of any scores.

    Args:
        ks: numbers of classes looked at.
        **options: torchmetrics'.
    """

    full_state_update = False
    hits: Tensor
    count: Tensor

    def __init__(self, *, ks: Sequence[int] = (1, 5), **options: Any) -> None:
        super().__init__(**options)
        self.ks = tuple(ks)
        self.add_state("hits", default=torch.zeros(len(self.ks), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("count", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, scores: Tensor, labels: Tensor) -> None:
        """Scores float (B, C) of the classes, and labels int (B,)."""
        self.hits += torch.stack([top_k_hits(scores, labels, k).sum() for k in self.ks])
        self.count += len(labels)

    def compute(self) -> dict[str, float]:
        """`top1`, `top5`, ... in [0, 1]; nan of nothing."""
        return {f"top{k}": float(hits / self.count) for k, hits in zip(self.ks, self.hits, strict=True)}


def _first(ids: Tensor) -> Tensor:
    """The rows of which no earlier one has the same id, int64 in their order; a negative id is nobody's double."""
    places = torch.arange(len(ids), device=ids.device)
    keys = torch.where(ids < 0, -1 - places, ids)
    values, inverse = keys.unique(return_inverse=True)
    first = torch.full_like(values, len(ids)).scatter_reduce(0, inverse, places, "amin")
    return first.sort().values
