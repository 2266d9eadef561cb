"""Metrics: plain functions of tensors and sentences, and torchmetrics' classes. Names resolve when first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from velm.metrics.averages import ClipScore, RefClipScore, TopKAccuracy
    from velm.metrics.captioning import bleu, caption_metrics, cider, cider_d, exact_match, rouge_l
    from velm.metrics.classification import ensemble_prompts, top_k_accuracy, top_k_hits
    from velm.metrics.clipscore import clip_score, ref_clip_score
    from velm.metrics.diversity import distinct_captions, distinct_n, mean_length, novelty
    from velm.metrics.folds import fold_metrics
    from velm.metrics.java import meteor, spice
    from velm.metrics.modules import CaptionMetrics, ProbeAccuracy, RetrievalMetrics
    from velm.metrics.probes import linear_probe, nearest_neighbours
    from velm.metrics.ptb import ptb_tokenize
    from velm.metrics.retrieval import (
        figures_of_ranks,
        recall_at_k,
        retrieval_metrics,
        retrieval_ranks,
        unique_pictures,
    )
    from velm.metrics.spectrum import effective_rank

_PLACES = {
    "averages": ("ClipScore", "RefClipScore", "TopKAccuracy"),
    "captioning": ("bleu", "caption_metrics", "cider", "cider_d", "exact_match", "rouge_l"),
    "classification": ("ensemble_prompts", "top_k_accuracy", "top_k_hits"),
    "clipscore": ("clip_score", "ref_clip_score"),
    "diversity": ("distinct_captions", "distinct_n", "mean_length", "novelty"),
    "folds": ("fold_metrics",),
    "java": ("meteor", "spice"),
    "modules": ("CaptionMetrics", "ProbeAccuracy", "RetrievalMetrics"),
    "probes": ("linear_probe", "nearest_neighbours"),
    "ptb": ("ptb_tokenize",),
    "retrieval": ("figures_of_ranks", "recall_at_k", "retrieval_metrics", "retrieval_ranks", "unique_pictures"),
    "spectrum": ("effective_rank",),
}
_MODULES = {name: module for module, names in _PLACES.items() for name in names}

__all__ = [
    "CaptionMetrics",
    "ClipScore",
    "ProbeAccuracy",
    "RefClipScore",
    "RetrievalMetrics",
    "TopKAccuracy",
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
    "top_k_accuracy",
    "top_k_hits",
    "unique_pictures",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has: {', '.join(__all__)}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
