"""Variants of VELM's own decoders, for tests of their contract and of generation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

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
    {"depth": 3, "unimodal_depth": 1, "image_gate": True},
]


def open_gates(decoder: nn.Module, alpha: float = 0.7) -> None:
    """Open the image gates of a decoder, so that its memory's image matters."""
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if name.endswith("image.alpha"):
                parameter.fill_(alpha)


def with_marks(memory: Tensor, image: int = 2) -> Tensor:
    """A memory (B, N, D) with the channel that marks its first `image` positions as those of an image."""
    marks = (torch.arange(memory.shape[1]) < image).to(memory)
    return torch.cat([memory, marks[:, None].expand(len(memory), -1, 1)], dim=-1)
