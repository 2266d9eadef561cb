"""Which attention a model of transformers computes with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["choose_attention"]


def choose_attention(model: Any, like: Tensor) -> None:
    """Take plain matrix products in place of torch's fused attention, in bfloat16 on a CPU; elsewhere the fused one.

    There the fused kernel with a mask takes seven times as long (MiniLM over 256 captions, forward and backward, on an
    Intel Xeon with AMX: `python -m benchmarks hf_text_step`). A model of another attention is left alone.

    Args:
        model: of transformers.
        like: float, in the dtype and on the device of the weights.
    """
    own = getattr(model.config, "_attn_implementation", None)
    if own not in ("sdpa", "eager") or not getattr(model, "_supports_sdpa", False):
        return
    cpu = like.device.type == "cpu"
    autocast = cpu and torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    wanted = "eager" if cpu and (autocast or like.dtype == torch.bfloat16) else "sdpa"
    if own != wanted:
        model.set_attn_implementation(wanted)
