"""Metrics of everything together as torchmetrics' classes: `update` batch by batch, `compute` over all devices.

Every state is a flat list of numbers that torchmetrics gathers and joins ("cat"), so that devices may have seen
different numbers of rows, or none; figures are those of the plain functions on everything at once. Sentences travel as
the bytes of their JSON.
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
from velm.metrics.classification import top_k_accuracy
from velm.metrics.diversity import novelty
from velm.metrics.folds import fold_metrics
from velm.metrics.java import meteor, require_java, spice
from velm.metrics.probes import linear_probe, nearest_neighbours
from velm.metrics.retrieval import retrieval_metrics, unique_images

__all__ = ["CaptionMetrics", "ProbeAccuracy", "RetrievalMetrics"]

_JAVA = {"meteor": meteor, "spice": spice}


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
    """`velm.metrics.retrieval_metrics` of pairs that come in batches: any text of an image is right for it.

    Args:
        ks: numbers of answers looked at.
        folds: also `folds/...`, see `velm.metrics.fold_metrics`; the images in the order of their ids.
        **options: torchmetrics': `sync_on_compute`, `process_group`, ...
    """

    columns: ClassVar = {
        "image": torch.float32,
        "text": torch.float32,
        "image_id": torch.int64,
        "text_id": torch.int64,
    }

    def __init__(self, *, ks: Sequence[int] = (1, 5, 10), folds: int | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.ks, self.folds = tuple(ks), folds

    def update(
        self, image_embeds: Tensor, text_embeds: Tensor, image_ids: Tensor, text_ids: Tensor | None = None
    ) -> None:
        """A batch of pairs.

        Args:
            image_embeds, text_embeds: float (B, E), row i a pair.
            image_ids: int (B,), equal where the image is the same, on whatever device and in whatever batch.
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
        images, owners = unique_images(image[rows], ids[rows])
        found = retrieval_metrics(images, text[rows], owners, self.ks)
        if self.folds is not None:
            folded = fold_metrics(images, text[rows], owners, folds=self.folds, ks=self.ks)
            found |= {f"folds/{name}": value for name, value in folded.items()}
        return found


class CaptionMetrics(_Rows):
    """`velm.metrics.caption_metrics` of captions that come in batches, over the corpus of all devices.

    Args:
        training: sentences trained on, for `caption/novel`; None for none of it.
        java: further figures, of 'meteor' and 'spice': `pip install 'velm[metrics]'`, and a Java.
        **options: torchmetrics'.

    Raises:
        JavaMissingError: `java` names what is not there.
    """

    columns: ClassVar = {"lines": torch.uint8}

    def __init__(self, *, training: Iterable[str] | None = None, java: Sequence[str] = (), **options: Any) -> None:
        super().__init__(**options)
        for name in java:
            if name not in _JAVA:
                raise ValueError(f"java names {name!r}; it takes some of {', '.join(_JAVA)}.")
            require_java(name.upper(), f"{name}.{name}")
        self.training_sentences, self.java = None if training is None else tuple(training), tuple(java)

    def update(
        self, hypotheses: Sequence[str], references: Sequence[Sequence[str]], image_ids: Sequence[Any] | None = None
    ) -> None:
        """A batch of captions.

        Args:
            hypotheses: one sentence an image.
            references: the right sentences of each.
            image_ids: whatever tells images apart; one that comes again counts once. None: none comes twice.
        """
        names = [None] * len(hypotheses) if image_ids is None else [str(name) for name in image_ids]
        if not len(hypotheses) == len(references) == len(names):
            raise ValueError(
                f"{len(hypotheses)} hypotheses, {len(references)} lists of references and {len(names)} image_ids: "
                f"it takes one of each an image."
            )
        rows = zip(names, hypotheses, map(list, references), strict=True)
        text = "".join(json.dumps(row) + "\n" for row in rows)  # ASCII, a line each
        self.append(lines=torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8) if text else torch.empty(0))

    def compute(self) -> dict[str, float]:
        """The figures by the names of metrics.json."""
        lines = bytes(self.column("lines").cpu().numpy()).decode().splitlines()
        rows = {row[0] if row[0] is not None else place: row for place, row in enumerate(map(json.loads, lines))}
        captions, references = [row[1] for row in rows.values()], [row[2] for row in rows.values()]
        found = caption_metrics(captions, references)
        if self.training_sentences is not None:
            found["caption/novel"] = novelty(captions, self.training_sentences)
        return found | {f"caption/{name}": _JAVA[name](captions, references) for name in self.java}


class ProbeAccuracy(_Rows):
    """Top-1 accuracy of `velm.metrics.linear_probe` and `nearest_neighbours` on features that come in batches.

    Args:
        weight_decay: of the linear probe, see there.
        k: neighbours.
        **options: torchmetrics'.
    """

    columns: ClassVar = {"feature": torch.float32, "label": torch.int64, "learnt": torch.bool}

    def __init__(self, *, weight_decay: float = 1e-3, k: int = 20, **options: Any) -> None:
        super().__init__(**options)
        self.weight_decay, self.k = weight_decay, k

    def update(self, features: Tensor, labels: Tensor, *, train: bool) -> None:
        """A batch of one set.

        Args:
            features: float (B, D), of a frozen encoder.
            labels: int (B,), classes 0 ... C - 1.
            train: whether they are learnt from; else they are asked about.
        """
        if features.dim() != 2 or labels.shape != features.shape[:1]:
            raise ValueError(
                f"features {tuple(features.shape)} and labels {tuple(labels.shape)} are to be (B, D), (B,)."
            )
        self.append(feature=features, label=labels, learnt=torch.full_like(labels, train))

    def compute(self) -> dict[str, float]:
        """`linear_probe/top1` and `nearest_neighbours/top1`, as in metrics.json."""
        labels, learnt = self.column("label"), self.column("learnt")
        features = self.column("feature").reshape(len(labels), -1)
        if bool(learnt.all()) or not bool(learnt.any()):
            raise ValueError("ProbeAccuracy has seen one set only: update it with train=True and with train=False.")
        known, asked, right = (features[learnt], labels[learnt]), features[~learnt], labels[~learnt]
        classes = int(labels.max()) + 1
        logits = linear_probe(*known, asked, weight_decay=self.weight_decay, classes=classes)
        votes = nearest_neighbours(*known, asked, k=self.k, classes=classes)
        return {
            "linear_probe/top1": top_k_accuracy(logits, right),
            "nearest_neighbours/top1": top_k_accuracy(votes, right),
        }


def _first(ids: Tensor) -> Tensor:
    """The rows of which no earlier one has the same id, int64 in their order; a negative id is nobody's double."""
    places = torch.arange(len(ids), device=ids.device)
    keys = torch.where(ids < 0, -1 - places, ids)
    values, inverse = keys.unique(return_inverse=True)
    first = torch.full_like(values, len(ids)).scatter_reduce(0, inverse, places, "amin")
    return first.sort().values
