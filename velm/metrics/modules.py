"""torchmetrics classes: `update` with batches, `compute` over all batches of all ranks.

Results equal those of the plain functions on the whole data. Ranks may hold different numbers of rows, or none.
Captions are sent as the UTF-8 bytes of JSON lines.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from velm.metrics.captioning import caption_metrics
from velm.metrics.classification import linear_probe, nearest_neighbours, top_k_accuracy, top_k_hits
from velm.metrics.clipscore import clip_score, ref_clip_score
from velm.metrics.diversity import novelty
from velm.metrics.java import meteor, require_java, spice
from velm.metrics.retrieval import fold_metrics, retrieval_metrics, unique_images
from velm.metrics.tokenization import Tokenize, tokenize_by

__all__ = [
    "CaptionMetrics",
    "ClipScore",
    "ProbeAccuracy",
    "RefClipScore",
    "RetrievalMetrics",
    "RowMetric",
    "TopKAccuracy",
]

_JAVA = {"meteor": meteor, "spice": spice}


class RowMetric(Metric):
    """Base class of metrics that keep all rows, in flat columns that torchmetrics concatenates over the ranks."""

    full_state_update = False
    columns: ClassVar[dict[str, torch.dtype]]

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for name in self.columns:
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def append(self, **values: Tensor) -> None:
        """Flatten and store a batch of each column."""
        for name, value in values.items():
            getattr(self, name).append(value.detach().to(self.device, self.columns[name]).flatten())

    def column(self, name: str) -> Tensor:
        """All values of a column, one-dimensional; ValueError if there are none."""
        values = getattr(self, name)  # a list before synchronisation, a tensor after
        if not sum(map(len, values) if isinstance(values, list) else [len(values)]):
            raise ValueError(f"{type(self).__name__} has seen nothing: call update before compute.")
        return dim_zero_cat(values)

    def sync(self, *args: Any, **options: Any) -> None:
        """As torchmetrics, but an empty column keeps its dtype, where torchmetrics would send floats."""
        for name, dtype in self.columns.items():
            if isinstance(getattr(self, name), list) and not getattr(self, name):
                setattr(self, name, [torch.empty(0, dtype=dtype, device=self.device)])
        super().sync(*args, **options)


class RetrievalMetrics(RowMetric):
    """`velm.metrics.retrieval_metrics` of image-text pairs; an image matches all of its texts.

    After `compute`, `image_embeds` (n, E) and `text_embeds` (m, E) hold the embeddings of all ranks, sorted by image.

    Args:
        ks: numbers of candidates.
        folds: also compute `folds/...`, see `velm.metrics.fold_metrics`, on the images in the order of their ids.
        **options: of torchmetrics: `sync_on_compute`, `process_group`, ...
    """

    columns: ClassVar = {
        "image": torch.float32,
        "text": torch.float32,
        "image_id": torch.int64,
        "text_id": torch.int64,
    }
    image_embeds: Tensor
    text_embeds: Tensor

    def __init__(self, *, ks: Sequence[int] = (1, 5, 10), folds: int | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.ks, self.folds = tuple(ks), folds

    def update(
        self, image_embeds: Tensor, text_embeds: Tensor, image_ids: Tensor, text_ids: Tensor | None = None
    ) -> None:
        """Add a batch of pairs.

        Args:
            image_embeds, text_embeds: float (B, E), row i a pair.
            image_ids: int (B,), equal for the same image, across batches and ranks.
            text_ids: int (B,), >= 0, equal for the same pair, which then counts once: distributed samplers repeat
                samples to fill the last batch. None: all pairs are different.
        """
        if not image_embeds.shape == text_embeds.shape == (len(image_ids), image_embeds.shape[-1]):
            raise ValueError(
                f"image_embeds {tuple(image_embeds.shape)}, text_embeds {tuple(text_embeds.shape)} and image_ids "
                f"{tuple(image_ids.shape)} must be (B, E), (B, E) and (B,): one row per pair."
            )
        texts = torch.full_like(image_ids, -1) if text_ids is None else text_ids
        self.append(image=image_embeds, text=text_embeds, image_id=image_ids, text_id=texts)

    def compute(self) -> dict[str, float]:
        """The metrics by the keys of metrics.json."""
        ids, texts = self.column("image_id"), self.column("text_id")
        image, text = (self.column(name).reshape(len(ids), -1) for name in ("image", "text"))
        rows = _first_rows(texts)
        rows = rows[ids[rows].argsort(stable=True)]  # the same order of sums for any number of ranks
        images, owners = unique_images(image[rows], ids[rows])
        self.image_embeds, self.text_embeds = images, text[rows]
        metrics = retrieval_metrics(images, text[rows], owners, self.ks)
        if self.folds is not None:
            folded = fold_metrics(images, text[rows], owners, folds=self.folds, ks=self.ks)
            metrics |= {f"folds/{name}": value for name, value in folded.items()}
        return metrics


class CaptionMetrics(RowMetric):
    """`velm.metrics.caption_metrics` of captions, over the corpus of all ranks.

    After `compute`, `captions` maps the image ids of all ranks (rows where there are none) to captions.

    Args:
        training: training captions, for `caption/novel`; None: not computed.
        java: further metrics, of 'meteor' and 'spice'; they need `pip install 'velm[metrics]'` and Java.
        tokenize: name of a tokenization (`velm.metrics.tokenization`) or a function.
        **options: of torchmetrics.

    Raises:
        JavaMissingError: a metric of `java` cannot be computed.
        ConfigError, MissingPackageError: `tokenize` cannot be used.
    """

    columns: ClassVar = {"lines": torch.uint8}
    captions: dict[Any, str]

    def __init__(
        self,
        *,
        training: Iterable[str] | None = None,
        java: Sequence[str] = (),
        tokenize: str | Tokenize = "auto",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        tokenize_by(tokenize)  # raises early
        self.tokenize = tokenize
        for name in java:
            if name not in _JAVA:
                raise ValueError(f"java names {name!r}; it takes some of {', '.join(_JAVA)}.")
            require_java(name.upper(), f"{name}.{name}")
        self.training_captions, self.java = None if training is None else tuple(training), tuple(java)

    def update(
        self, hypotheses: Sequence[str], references: Sequence[Sequence[str]], image_ids: Sequence[Any] | None = None
    ) -> None:
        """Add a batch of captions.

        Args:
            hypotheses: one caption per image.
            references: the reference captions of each image.
            image_ids: integers or strings; a repeated image counts once. None: all images are different.
        """
        names = [None] * len(hypotheses) if image_ids is None else [_json_id(name) for name in image_ids]
        if not len(hypotheses) == len(references) == len(names):
            raise ValueError(
                f"{len(hypotheses)} hypotheses, {len(references)} lists of references and {len(names)} image_ids: "
                f"one of each per image is required."
            )
        rows = zip(names, hypotheses, map(list, references), strict=True)
        text = "".join(json.dumps(row) + "\n" for row in rows)  # ASCII, one line each
        self.append(lines=torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8) if text else torch.empty(0))

    def compute(self) -> dict[str, float]:
        """The metrics by the keys of metrics.json."""
        lines = bytes(self.column("lines").cpu().numpy()).decode().splitlines()
        rows: dict[tuple[int, Any], list[Any]] = {}
        for row, (name, *texts) in enumerate(map(json.loads, lines)):
            rows[(2, row) if name is None else (int(isinstance(name, str)), name)] = texts
        keys = sorted(rows)  # the same order of sums for any number of ranks
        captions, references = [rows[key][0] for key in keys], [rows[key][1] for key in keys]
        self.captions = {name: caption for (_, name), caption in zip(keys, captions, strict=True)}
        metrics = caption_metrics(captions, references, tokenize=self.tokenize)
        if self.training_captions is not None:
            metrics["caption/novel"] = novelty(captions, self.training_captions, tokenize=self.tokenize)
        java = {name: _JAVA[name](captions, references, tokenize=self.tokenize) for name in self.java}
        return metrics | {f"caption/{name}": score for name, score in java.items()}


class ProbeAccuracy(RowMetric):
    """Top-1 accuracy of `velm.metrics.linear_probe` and `nearest_neighbours` on features that come in batches.

    Args:
        weight_decay: of the linear probe.
        k: number of neighbours.
        **options: of torchmetrics.
    """

    columns: ClassVar = {"feature": torch.float32, "label": torch.int64, "train": torch.bool}

    def __init__(self, *, weight_decay: float = 1e-3, k: int = 20, **options: Any) -> None:
        super().__init__(**options)
        self.weight_decay, self.k = weight_decay, k

    def update(self, features: Tensor, labels: Tensor, *, train: bool) -> None:
        """Add a batch of the training or of the test set.

        Args:
            features: float (B, D), of a frozen encoder.
            labels: int (B,), classes 0 ... C - 1.
            train: whether the probes are fitted on this batch; else it is classified.
        """
        if features.dim() != 2 or labels.shape != features.shape[:1]:
            raise ValueError(f"features {tuple(features.shape)} and labels {tuple(labels.shape)} must be (B, D), (B,).")
        self.append(feature=features, label=labels, train=torch.full_like(labels, train))

    def compute(self) -> dict[str, float]:
        """`linear_probe/top1` and `nearest_neighbours/top1`, the keys of metrics.json."""
        labels, train = self.column("label"), self.column("train")
        features = self.column("feature").reshape(len(labels), -1)
        if bool(train.all()) or not bool(train.any()):
            raise ValueError("ProbeAccuracy has seen one set only: update it with train=True and with train=False.")
        data, targets = (features[train], labels[train], features[~train]), labels[~train]
        classes = int(labels.max()) + 1
        logits = linear_probe(*data, weight_decay=self.weight_decay, classes=classes)
        votes = nearest_neighbours(*data, k=self.k, classes=classes)
        return {
            "linear_probe/top1": top_k_accuracy(logits, targets),
            "nearest_neighbours/top1": top_k_accuracy(votes, targets),
        }


class _Mean(Metric):
    """Mean of scores, one per pair."""

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_state("total", default=torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", default=torch.tensor(0), dist_reduce_fx="sum")

    def add(self, scores: Tensor) -> None:
        self.total += scores.double().sum()
        self.count += len(scores)

    def compute(self) -> float:
        """The mean; nan if there are no pairs."""
        return float(self.total / self.count)


class ClipScore(_Mean):
    """Mean `velm.metrics.clip_score` of image-caption pairs, in [0, 2.5]."""

    def update(self, image_embeds: Tensor, caption_embeds: Tensor) -> None:
        """Add embeddings, float (B, E), of images and of their captions."""
        self.add(clip_score(image_embeds, caption_embeds))


class RefClipScore(_Mean):
    """Mean `velm.metrics.ref_clip_score` of image-caption pairs."""

    def update(
        self, image_embeds: Tensor, caption_embeds: Tensor, reference_embeds: Tensor, reference_ids: Tensor
    ) -> None:
        """Add a batch.

        Args:
            image_embeds, caption_embeds: float (B, E).
            reference_embeds: float (m, E).
            reference_ids: int (m,), the row of this batch that each reference belongs to; each row has at least one.
        """
        self.add(ref_clip_score(image_embeds, caption_embeds, reference_embeds, reference_ids))


class TopKAccuracy(Metric):
    """Fraction of the images whose true class is among the k best scores; ties count against the model.

    Args:
        ks: values of k.
        **options: of torchmetrics.
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
        """Add class scores, float (B, C), and labels, int (B,)."""
        self.hits += torch.stack([top_k_hits(scores, labels, k).sum() for k in self.ks])
        self.count += len(labels)

    def compute(self) -> dict[str, float]:
        """`top1`, `top5`, ... in [0, 1]; nan if there are no images."""
        return {f"top{k}": float(hits / self.count) for k, hits in zip(self.ks, self.hits, strict=True)}


def _json_id(name: Any) -> int | str:
    return name if isinstance(name, int) else str(name)


def _first_rows(ids: Tensor) -> Tensor:
    """Rows without an earlier row of the same id, int64 in ascending order; negative ids are all different."""
    rows = torch.arange(len(ids), device=ids.device)
    keys = torch.where(ids < 0, -1 - rows, ids)
    values, inverse = keys.unique(return_inverse=True)
    first = torch.full_like(values, len(ids)).scatter_reduce(0, inverse, rows, "amin")
    return first.sort().values
