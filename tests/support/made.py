"""Results of evaluations made by hand, so that reports need no model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.functional import normalize

from velm.data.base import Record
from velm.evaluation.evaluate import Measured, figures
from velm.evaluation.predictions import Predictions, Written
from velm.explain.attention import WordMaps
from velm.metrics import retrieval_ranks


def noise_records(count: int, texts: Sequence[str] = ("a blue circle", "a <b>dog</b>"), side: int = 24) -> list[Record]:
    """Images of noise, two sentences each."""
    rng = np.random.default_rng(0)
    shape = (side, side, 3)
    return [Record(f"id{i}", rng.integers(0, 256, shape, dtype=np.uint8), tuple(texts)) for i in range(count)]


def measured(
    records: Sequence[Record],
    *,
    caption: str = "a red circle",
    side: int = 4,
    aligned: bool = True,
    writes: bool = True,
) -> Measured:
    """Embeddings a little better than chance, one caption for all, maps of side x side."""
    torch.manual_seed(0)
    count, words = len(records), tuple(caption.split())
    owner = torch.tensor([i for i, record in enumerate(records) for _ in record.texts])
    image = normalize(torch.randn(count, 8), dim=1)
    text = normalize(image[owner] + 0.5 * torch.randn(len(owner), 8), dim=1)
    found = Predictions(
        image if aligned else None,
        text if aligned else None,
        owner if aligned else None,
        [sentence for record in records for sentence in record.texts] if aligned else (),
        [Written(record.image_id, None, caption, record.texts) for record in records] if writes else None,
        [WordMaps(words, torch.rand(len(words), side, side)) for _ in records] if writes else (),
    )
    ranks = {"": retrieval_ranks(image, text, owner)} if aligned else {}
    return Measured(found, figures(found), ranks)
