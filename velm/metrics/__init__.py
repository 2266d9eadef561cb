"""Metrics: plain functions of tensors and captions, and torchmetrics classes. Names are imported on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from velm.metrics.captioning import bleu, caption_metrics, cider, cider_d, exact_match, rouge_l
    from velm.metrics.classification import (
        ensemble_prompts,
        linear_probe,
        mean_per_class,
        nearest_neighbours,
        top_k_accuracy,
        top_k_hits,
    )
    from velm.metrics.clipscore import clip_score, ref_clip_score
    from velm.metrics.diversity import distinct_captions, distinct_n, mean_length, novelty
    from velm.metrics.java import meteor, spice
    from velm.metrics.modules import (
        CaptionMetrics,
        ClipScore,
        ProbeAccuracy,
        RefClipScore,
        RetrievalMetrics,
        TopKAccuracy,
    )
    from velm.metrics.ptb import ptb_tokenize
    from velm.metrics.retrieval import (
        effective_rank,
        figures_of_ranks,
        fold_metrics,
        recall_at_k,
        retrieval_metrics,
        retrieval_ranks,
        unique_images,
        unique_pictures,
    )
    from velm.metrics.tokenization import auto_tokenize, tokenize_by

_MODULES = (
    "captioning",
    "diversity",
    "ptb",
    "tokenization",
    "java",
    "retrieval",
    "classification",
    "clipscore",
    "modules",
)
"""Searched in this order; the first five do not import torch."""

__all__ = [
    "CaptionMetrics",
    "ClipScore",
    "ProbeAccuracy",
    "RefClipScore",
    "RetrievalMetrics",
    "TopKAccuracy",
    "auto_tokenize",
    "bleu",
    "caption_metrics",
    "cider",
    "cider_d",
    "clip_score",
    "distinct_captions",
    "distinct_n",
    "effective_rank",
    "ensemble_prompts",
    "exact_match",
    "figures_of_ranks",
    "fold_metrics",
    "linear_probe",
    "mean_length",
    "mean_per_class",
    "meteor",
    "nearest_neighbours",
    "novelty",
    "ptb_tokenize",
    "recall_at_k",
    "ref_clip_score",
    "retrieval_metrics",
    "retrieval_ranks",
    "rouge_l",
    "spice",
    "tokenize_by",
    "top_k_accuracy",
    "top_k_hits",
    "unique_images",
    "unique_pictures",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        for module in _MODULES:
            loaded = importlib.import_module(f"{__name__}.{module}")
            if name in loaded.__all__:
                return getattr(loaded, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has: {', '.join(__all__)}")


def __dir__() -> list[str]:
    return __all__
