"""Evaluations made by hand, so that tests of reports need no model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.functional import normalize

from velm.data.base import Record
from velm.evaluation.evaluate import Evaluation, prediction_metrics
from velm.evaluation.predictions import Captions, GeneratedCaption, Predictions, Retrieval
from velm.explain.attention import WordMaps
from velm.metrics import retrieval_ranks


def noise_records(count: int, texts: Sequence[str] = ("a blue circle", "a <b>dog</b>"), side: int = 24) -> list[Record]:
    """Images of noise, two captions each."""
    rng = np.random.default_rng(0)
    shape = (side, side, 3)
    return [Record(f"id{i}", rng.integers(0, 256, shape, dtype=np.uint8), tuple(texts)) for i in range(count)]


def make_evaluation(
    records: Sequence[Record],
    *,
    caption: str = "a red circle",
    side: int = 4,
    aligned: bool = True,
    writes: bool = True,
) -> Evaluation:
    """Embeddings a little better than chance, one caption for all images, attention maps of side x side."""
    torch.manual_seed(0)
    count, words = len(records), tuple(caption.split())
    owner = torch.tensor([i for i, record in enumerate(records) for _ in record.texts])
    image = normalize(torch.randn(count, 8), dim=1)
    text = normalize(image[owner] + 0.5 * torch.randn(len(owner), 8), dim=1)
    texts = [text for record in records for text in record.texts]
    rows = [GeneratedCaption(record.image_id, None, caption, record.texts) for record in records]
    maps = [WordMaps(words, torch.rand(len(words), side, side)) for _ in records] if writes else []
    predictions = Predictions(
        Retrieval(image, text, owner, texts) if aligned else None, Captions(rows, maps) if writes else None
    )
    ranks = {"": retrieval_ranks(image, text, owner)} if aligned else {}
    return Evaluation(predictions, prediction_metrics(predictions), ranks)
