"""Counts the bytes and FLOPs of operations on tensors with or without data."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from velm import _compat
from velm._compat import TorchDispatchMode
from velm.outputs import Batch
from velm.training.task import VisionLanguageTask

__all__ = ["PeakMemory", "counting"]


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of tensors created inside; fake tensors count like real ones.

    Attributes:
        now: bytes alive.
        peak: largest value of `now`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def ignore(self, tensors: Sequence[Tensor]) -> None:
        """Do not count these tensors."""
        self._known |= {_compat.storage_key(tensor.untyped_storage()) for tensor in tensors}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = _compat.storage_key(storage), storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


class _AllContent(TorchFunctionMode):
    """A bool mask holds True everywhere, as the masks of a `probe` do: fake tensors hold no values."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__getitem__ and isinstance(args[1], Tensor) and args[1].dtype == torch.bool:
            return args[0].flatten(0, args[1].dim() - 1)
        if func is Tensor.all and args[0].dtype == torch.bool and len(args) == 1 and not kwargs:
            return True
        return func(*args, **(kwargs or {}))


@contextmanager
def counting(
    task: VisionLanguageTask, batches: Sequence[Batch], precision: str, fake: bool
) -> Iterator[tuple[PeakMemory, FlopCounterMode]]:
    """Count what operations on batches hold and compute, without weights, their gradients and the batches themselves.

    Args:
        precision: of the Trainer.
        fake: whether the tensors have no data.
    """
    peak, flops = PeakMemory(), FlopCounterMode(display=False, custom_mapping=_ATTENTION)
    peak.ignore([*task.parameters(), *task.buffers(), *(p.grad for p in task.parameters() if p.grad is not None)])
    for batch in batches:  # counted by sample_bytes
        encoded = () if batch.encoded is None else (batch.encoded.features, batch.encoded.pooled)
        tensors = (batch.images, batch.tokens, batch.mask, batch.image_ids, *encoded)
        peak.ignore([tensor for tensor in tensors if tensor is not None])
    with ExitStack() as stack:
        modes: list[AbstractContextManager] = [flops, peak, *([_AllContent()] if fake else []), _autocast(precision)]
        for mode in modes:
            stack.enter_context(mode)
        yield peak, flops


def _autocast(precision: str) -> AbstractContextManager:
    return torch.autocast("cpu", dtype=torch.bfloat16) if "mixed" in precision else nullcontext()


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _attention_backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(gradient, query, key, value))


_ATTENTION = {  # torch's counter lacks the CPU kernels
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
