"""Variants of VELM's own decoders, for tests of their contract and of generation."""

from __future__ import annotations

from typing import Any

RNN_DECODERS: list[dict[str, Any]] = [
    {},
    {"cell": "gru"},
    {"gate": True},
    {"cell": "gru", "gate": True, "embed_dim": 5, "attention_dim": 3},
    {"tie_embeddings": False, "doubly_stochastic": 1.0},
]
TRANSFORMER_DECODERS: list[dict[str, Any]] = [
    {"depth": 2},
    {"depth": 1, "heads": 4},
    {"depth": 2, "tie_embeddings": False, "mlp_ratio": 1.5, "dropout": 0.3},
    {"depth": 4, "heads": 2, "unimodal_depth": 3},
    {"depth": 3, "heads": 2, "unimodal_depth": 1, "alternating": True, "dropout": 0.3, "activation": "quick_gelu"},
]
