"""Time of a step by kind of operation, from torch.profiler: self time of each operation, summed by kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["FLOOR", "gathered", "kind", "shares"]

FLOOR = "matrix products"
"""What cannot be done without: the seconds of this kind alone are the floor."""

KINDS = {
    FLOOR: ("mm", "addmm", "bmm", "baddbmm", "addbmm", "mkldnn_linear", "linear"),
    "reading data": ("dataloader",),
    "convolutions": ("convolution",),
    "pooling": ("pool",),
    "attention kernels": ("scaled_dot_product", "flash_attention", "efficient_attention"),
    "optimizer": ("adamw", "addcdiv", "lerp", "foreach", "optimizer"),
    "norms": ("layer_norm", "batch_norm", "group_norm", "vector_norm"),
    "activations": (
        "gelu",
        "relu",
        "threshold",
        "silu",
        "sigmoid",
        "tanh",
        "softmax",
        "exp",
        "logsumexp",
        "log_",
        "hardswish",
    ),
    "recurrent kernels": ("lstm", "gru", "mkldnn_rnn"),
    "copies, casts, fills": ("copy", "_to", "cat", "clone", "fill", "zero", "contiguous", "empty", "pad"),
    "indexing": ("index", "gather", "scatter", "embedding", "sort", "topk", "nonzero"),
    "sums and products": ("add", "sub", "mul", "div", "sum", "mean", "where", "masked", "neg", "max", "min"),
}


def kind(name: str) -> str:
    """Kind of an operation, from its name in the profiler."""
    bare = name.lower().removeprefix("aten::").strip("_")
    if bare in KINDS[FLOOR]:
        return FLOOR
    for each, parts in KINDS.items():
        if each != FLOOR and any(part in bare for part in parts):
            return each
    return "the rest"


def shares(step: Callable[[], Any], device: str = "cpu") -> dict[str, float]:
    """Seconds of each kind in one step, in descending order; the sum is the time seen by the profiler."""
    import torch
    from torch.profiler import ProfilerActivity

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with torch.profiler.profile(activities=activities) as recorded:
        step()
    return gathered(recorded, device)


def gathered(recorded: Any, device: str) -> dict[str, float]:
    """Seconds of each kind in the records of a torch.profiler, in descending order."""
    own = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    found: dict[str, float] = {}
    for event in recorded.key_averages():
        found[kind(event.key)] = found.get(kind(event.key), 0.0) + getattr(event, own) / 1e6
    return dict(sorted(found.items(), key=lambda item: -item[1]))
