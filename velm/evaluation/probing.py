"""What the frozen image encoder has learnt: classes by nearest neighbours and by a linear probe of its features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from velm.data.bad_samples import BadSample
from velm.data.base import Record
from velm.errors import DataError, PipelineError
from velm.evaluation.reading import MAX_BAD, encoded
from velm.evaluation.zero_shot import require_classes
from velm.metrics.classification import top_k_accuracy
from velm.metrics.probes import linear_probe, nearest_neighbours
from velm.pipeline import Pipeline

__all__ = ["DECAYS", "choose_decay", "image_features", "probe_figures"]

DECAYS = (1e-3, 1e-2, 1e-1, 1.0)
"""Weight decays of the linear probe to choose from."""


def image_features(
    pipeline: Pipeline,
    records: Sequence[Record],
    *,
    batch_size: int = 64,
    left_out: dict[int, BadSample] | None = None,
    max_bad: float = MAX_BAD,
) -> Tensor:
    """What the image encoder says of each whole image before any projection, float (records, D), on the CPU.

    Args:
        pipeline: whose image encoder it is.
        records: with images.
        batch_size: images at a time.
        left_out: is filled with the bad_samples, by place, of images that cannot be read and so have no row; None: such
            an image is an error.
        max_bad: share of the records that may be left out.
    """
    if pipeline.model.image_encoder is None:
        raise PipelineError("The model has no image encoder, so there are no features of images to probe.")
    found = []
    for *_, image in encoded(pipeline, records, batch_size, left_out, max_bad=max_bad):
        assert image is not None
        found.append(image.pooled.float().cpu())
    return torch.cat(found)


def probe_figures(
    pipeline: Pipeline,
    train: Sequence[Record],
    records: Sequence[Record],
    *,
    batch_size: int = 64,
    max_bad: float = MAX_BAD,
) -> dict[str, float]:
    """Top-1 accuracy of both probes, under the names of metrics.json.

    The linear probe's weight decay is chosen on a fifth of `train`; nothing is chosen on `records`.

    Args:
        pipeline: whose image encoder is probed; nothing of it is trained.
        train: records with classes, of the same dataset; images that cannot be read are left out.
        records: what is asked about, all of it readable.
        batch_size: images at a time.
        max_bad: share of `train` that may be left out.

    Raises:
        DataError: the records have no classes, or not the same.
    """
    (names, labels), (others, right) = require_classes(train), require_classes(records)
    left_out: dict[int, BadSample] = {}
    strange = [name for name in others if name not in names]
    if strange:
        raise DataError(f"The class {strange[0]!r} is not among the {len(names)} classes that are trained on.")
    right = torch.tensor([names.index(name) for name in others])[right]
    features = image_features(pipeline, train, batch_size=batch_size, left_out=left_out, max_bad=max_bad)
    labels = labels[[row for row in range(len(labels)) if row not in left_out]]
    theirs = image_features(pipeline, records, batch_size=batch_size)
    count = len(names)
    logits = linear_probe(features, labels, theirs, weight_decay=choose_decay(features, labels), classes=count)
    votes = nearest_neighbours(features, labels, theirs, classes=count)
    return {
        "linear_probe/top1": top_k_accuracy(logits, right),
        "nearest_neighbours/top1": top_k_accuracy(votes, right),
    }


def choose_decay(features: Tensor, labels: Tensor, decays: Sequence[float] = DECAYS) -> float:
    """The weight decay that does best on a fifth of the rows, drawn by a fixed seed, when learnt from the others.

    Args:
        features: float (n, D), n >= 5.
        labels: int (n,).
        decays: to choose from; of equally good ones the first.
    """
    if len(features) < 5:
        raise DataError(f"There are {len(features)} images to train on; it takes 5, to keep a fifth.")
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))
    held, rest = order[: len(order) // 5], order[len(order) // 5 :]
    count = int(labels.max()) + 1
    scores = {
        decay: top_k_accuracy(
            linear_probe(features[rest], labels[rest], features[held], weight_decay=decay, classes=count), labels[held]
        )
        for decay in decays
    }
    return max(scores, key=scores.__getitem__)
