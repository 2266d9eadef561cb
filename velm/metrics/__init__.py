"""Metrics: plain functions of tensors and sentences. Names resolve when they are first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from velm.metrics.captioning import (
        bleu,
        caption_metrics,
        cider,
        cider_d,
        distinct_captions,
        distinct_n,
        exact_match,
        rouge_l,
    )
    from velm.metrics.ptb import ptb_tokenize
    from velm.metrics.retrieval import (
        figures_of_ranks,
        recall_at_k,
        retrieval_metrics,
        retrieval_ranks,
        unique_pictures,
    )

__all__ = [
    "bleu",
    "caption_metrics",
    "cider",
    "cider_d",
    "distinct_captions",
    "distinct_n",
    "exact_match",
    "figures_of_ranks",
    "ptb_tokenize",
    "recall_at_k",
    "retrieval_metrics",
    "retrieval_ranks",
    "rouge_l",
    "unique_pictures",
]

_RETRIEVAL = {"figures_of_ranks", "recall_at_k", "retrieval_metrics", "retrieval_ranks", "unique_pictures"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has: {', '.join(__all__)}")
    module = "retrieval" if name in _RETRIEVAL else "ptb" if name == "ptb_tokenize" else "captioning"
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)


def __dir__() -> list[str]:
    return __all__
