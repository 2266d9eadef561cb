"""Probes of the frozen image encoder: classification of its features by nearest neighbours and a linear probe."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from velm.data.bad_samples import BadSample
from velm.data.base import Record
from velm.errors import DataError
from velm.evaluation.encoding import MAX_BAD, encode_images
from velm.evaluation.zero_shot import require_classes
from velm.metrics.classification import linear_probe, nearest_neighbours, top_k_accuracy
from velm.pipeline import Pipeline

DECAYS = (1e-3, 1e-2, 1e-1, 1.0)
"""Candidate weight decays of the linear probe."""


def image_features(
    pipeline: Pipeline,
    records: Sequence[Record],
    *,
    batch_size: int = 64,
    unreadable: dict[int, BadSample] | None = None,
    max_bad: float = MAX_BAD,
) -> Tensor:
    """Pooled features of the image encoder before any projection, float32 (readable records, D), on the CPU.

    Args:
        unreadable: filled with the unreadable records by index; None: they raise.

    Raises:
        PipelineError: the model has no image encoder.
    """
    batches = encode_images(pipeline, records, batch_size, unreadable, max_bad=max_bad)
    return torch.cat([image.pooled.float().cpu() for _, image in batches])


def probe_metrics(
    pipeline: Pipeline,
    train: Sequence[Record],
    records: Sequence[Record],
    *,
    batch_size: int = 64,
    max_bad: float = MAX_BAD,
) -> dict[str, float]:
    """`linear_probe/top1` and `nearest_neighbours/top1`: accuracy of both probes on `records`.

    The linear probe's weight decay is chosen on a fifth of `train`; nothing is chosen on `records`.

    Args:
        train: records with classes; unreadable ones are skipped.
        records: records to classify, all readable, with classes that `train` has.

    Raises:
        DataError: records have no classes, or classes that `train` lacks.
    """
    (names, labels), (test_names, targets) = require_classes(train), require_classes(records)
    missing = [name for name in test_names if name not in names]
    if missing:
        raise DataError(f"The class {missing[0]!r} is not among the {len(names)} classes of the training records.")
    targets = torch.tensor([names.index(name) for name in test_names])[targets]
    unreadable: dict[int, BadSample] = {}
    features = image_features(pipeline, train, batch_size=batch_size, unreadable=unreadable, max_bad=max_bad)
    labels = labels[[row for row in range(len(labels)) if row not in unreadable]]
    data = (features, labels, image_features(pipeline, records, batch_size=batch_size))
    logits = linear_probe(*data, weight_decay=choose_decay(features, labels), classes=len(names))
    votes = nearest_neighbours(*data, classes=len(names))
    return {
        "linear_probe/top1": top_k_accuracy(logits, targets),
        "nearest_neighbours/top1": top_k_accuracy(votes, targets),
    }


def choose_decay(features: Tensor, labels: Tensor, decays: Sequence[float] = DECAYS) -> float:
    """The weight decay with the best accuracy on a fifth of the rows, drawn with a fixed seed, fitted on the rest.

    Args:
        features: float (n, D), n >= 5.
        labels: int (n,).
        decays: candidates; the first of equally good ones wins.
    """
    if len(features) < 5:
        raise DataError(f"There are {len(features)} images to train on; at least 5 are required, to hold out a fifth.")
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
