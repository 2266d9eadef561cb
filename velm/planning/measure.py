"""What a step of a model takes, read off two small steps on tensors that have shapes and no numbers.

Under torch's `FakeTensorMode` a model of any size is built and run in seconds and in no memory. Two steps give lines in
the number of samples; losses of the whole batch, which grow with its square, are run for real on embeddings alone. What
cannot be run without numbers (the lengths that an RNN packs by) is built and run for real, on fewer samples.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from velm import _compat
from velm._compat import FakeTensorMode, TorchDispatchMode
from velm.errors import ConfigError
from velm.losses.weighted import build_losses
from velm.outputs import Batch, JointEmbeddings, VisionLanguageOutput
from velm.planning.step import Costs
from velm.pretrained.weights import skip_pretrained
from velm.training.memory.recompute import blocks_of
from velm.training.task import VisionLanguageTask

__all__ = ["PeakMemory", "measure"]

FAKE = (32, 64)  # samples; enough that the peak is the activations' and not a large weight's gradient's
REAL = (4, 8)
PAIRS = (4096, 5120, 6144)  # rows of a loss of the whole batch: above the tiles that ours work in


class PeakMemory(TorchDispatchMode):
    """The largest number of bytes, `peak`, that tensors made inside held at the same time; fake tensors count as real.

    Weights and gradients that were there before are not counted, and what was made inside counts until it is let go.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def ignore(self, tensors: Sequence[Tensor]) -> None:
        """Leave the memory of these out."""
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
        weakref.finalize(storage, self._let_go, key, size)

    def _let_go(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


class _AllContent(TorchFunctionMode):
    """A mask picks every position, as the masks of a `probe` do: fake tensors cannot be asked which."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__getitem__ and isinstance(args[1], Tensor) and args[1].dtype == torch.bool:
            return args[0].flatten(0, args[1].dim() - 1)
        return func(*args, **(kwargs or {}))


@dataclass
class _Step:
    """What one step of a few samples takes."""

    bytes: int
    forward: int
    backward: int
    embeds: int


def measure(build: Callable[[], VisionLanguageTask], probe: Callable[[int], Batch], precision: str) -> Costs:
    """Build a task and find out what a step of it takes.

    Args:
        build: gives the task; pretrained weights are not read.
        probe: gives a batch of so many samples, all of whose positions hold content.
        precision: of the Trainer.

    Raises:
        ConfigError: the task cannot be built.
        Exception: whatever a step of a few samples raises.
    """
    try:
        return _measure(build, probe, precision, FakeTensorMode(), FAKE)
    except ConfigError:
        raise
    except Exception:  # numbers are asked for, in one of many ways; real faults come again
        return _measure(build, probe, precision, nullcontext(), REAL)


def _measure(
    build: Callable[[], VisionLanguageTask],
    probe: Callable[[int], Batch],
    precision: str,
    mode: AbstractContextManager[Any],
    sizes: tuple[int, int],
) -> Costs:
    with mode, skip_pretrained():
        task = build()
        task.train()
        if precision.endswith("-true") and not precision.startswith("32"):
            task.to(torch.bfloat16)
        batches = [probe(number) for number in sizes]
        steps = [_step(task, batch, precision, isinstance(mode, FakeTensorMode)) for batch in batches]
        lines = {n: _line(sizes, [getattr(step, n) for step in steps]) for n in ("bytes", "forward", "backward")}
        sample = sum(t.numel() * t.element_size() for t in (batches[0].images, batches[0].tokens) if t is not None)
        weights = _weights(task)
    loss_bytes, loss_flops = _losses_of_pairs(task) if steps[0].embeds else ((0.0,) * 3, (0.0,) * 3)
    return Costs(
        **weights,
        activations=lines["bytes"],
        forward_flops=lines["forward"],
        backward_flops=lines["backward"],
        sample_bytes=sample // sizes[0],
        embed_bytes=steps[0].embeds // len(batches[0]),
        rows=len(batches[0]) // sizes[0],
        writes="decoder" in task.needs,
        shared=task.losses.share,
        loss_bytes=loss_bytes,
        loss_flops=loss_flops,
    )


def _step(task: VisionLanguageTask, batch: Batch, precision: str, fake: bool) -> _Step:
    """A forward and a backward pass; alignment losses, which are of the whole batch, are left to `_losses_of_pairs`."""
    for parameter in task.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    peak, flops = PeakMemory(), FlopCounterMode(display=False, custom_mapping=_ATTENTION)
    peak.ignore([*task.parameters(), *task.buffers(), *(p.grad for p in task.parameters() if p.grad is not None)])
    # the batch is counted for itself
    peak.ignore([t for t in (batch.images, batch.tokens, batch.mask, batch.image_ids) if t is not None])
    with ExitStack() as stack:
        modes: list[AbstractContextManager] = [flops, peak, *([_AllContent()] if fake else []), _autocast(precision)]
        for mode in modes:
            stack.enter_context(mode)
        output = task.model(batch, task.needs)
        parts = [loss(output, batch) for loss in task.losses.named().values() if not _of_pairs(loss)]
        embeds = [] if output.embeddings is None else [output.image_embeds, output.text_embeds]
        size = sum(e.numel() * e.element_size() for e in embeds)
        total = torch.stack([*parts, *(e.sum() for e in embeds)]).sum()
        del output, parts, embeds
        forward = flops.get_total_flops()
        total.backward()
    aligned = any(_of_pairs(loss) for loss in task.losses.named().values())
    return _Step(peak.peak, forward, flops.get_total_flops() - forward, size if aligned else 0)


def _of_pairs(loss: Any) -> bool:
    """Whether a loss compares the samples of a batch and needs nothing else of them."""
    return bool(loss.aligns) and "decoder" not in loss.requires


def _losses_of_pairs(task: VisionLanguageTask) -> tuple[Any, Any]:
    """Parabolas in the rows of a batch: bytes and FLOPs of the losses that compare its samples."""
    pairs = {name: loss for name, loss in task.losses.named().items() if _of_pairs(loss)}
    spec = {name: options for name, options in task.model_config["losses"].items() if name.rpartition(":")[2] in pairs}
    losses, width = build_losses(spec), task.model_config["embed_dim"]
    found = []
    for rows in PAIRS:
        embeds = [F.normalize(torch.randn(rows, width), dim=1).requires_grad_() for _ in range(2)]
        batch = Batch(images=None, tokens=None, mask=None, image_ids=torch.arange(rows))
        output = VisionLanguageOutput(embeddings=JointEmbeddings(*embeds))
        with FlopCounterMode(display=False) as flops, PeakMemory() as peak:
            losses(output, batch)[0].backward()
        found.append((peak.peak, flops.get_total_flops()))
    return tuple(tuple(float(c) for c in _parabola([each[i] for each in found])) for i in range(2))  # type: ignore


def _parabola(values: list[int]) -> Any:
    return np.polyfit(np.array(PAIRS) / PAIRS[0], values, 2) / np.array([PAIRS[0] ** 2, PAIRS[0], 1])


def _line(sizes: tuple[int, int], values: list[int]) -> tuple[float, float]:
    """(slope a sample, intercept)."""
    slope = (values[1] - values[0]) / (sizes[1] - sizes[0])
    return slope, values[0] - slope * sizes[0]


def _weights(task: VisionLanguageTask) -> dict[str, int]:
    """Bytes of the weights: all, learnt, in blocks that FSDP2 shards by themselves, in the largest of them."""

    def size(tensors: Any) -> int:
        return sum({id(p): p.numel() * p.element_size() for p in tensors}.values())

    blocks = [size(block.parameters()) for block in blocks_of(task.model)]
    return {
        "weights": size(task.parameters()),
        "learnt": size(p for p in task.parameters() if p.requires_grad),
        "in_blocks": sum(blocks),
        "largest_block": max(blocks, default=0),
        "of_losses": size(task.losses.parameters()),
        "averaged": size(task.parameters()) if task.ema is not None else 0,
    }


def _autocast(precision: str) -> AbstractContextManager:
    return torch.autocast("cpu", dtype=torch.bfloat16) if "mixed" in precision else nullcontext()


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _attention_backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(gradient, query, key, value))


_ATTENTION = {  # torch's counter knows the kernels of GPUs only
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
