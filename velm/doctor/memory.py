"""The memory of a training step, estimated before it is taken.

    weights + gradients + AdamW's two moments + moving average     counted
    + what the forward pass keeps for the backward pass            measured on 2 and 4 images, continued as a line

Left out: the data loader, the codecs' and kernels' scratch room, gradients of activations, and what grows with the
square of the batch. So it is a floor: on a CPU, peaks of steps were 1.5 to 1.7 times what was told.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from velm.data.text.base import Tokenizer
from velm.findings import Finding
from velm.losses.weighted import WeightedLosses
from velm.model import VisionLanguageModel
from velm.outputs import Batch

__all__ = ["kept_bytes", "memory", "probe"]

MEASURED = (2, 4)  # images


def memory(
    model: VisionLanguageModel,
    losses: WeightedLosses,
    *,
    probes: tuple[Batch, Batch],
    size: int,
    precision: str = "32-true",
    average: bool = False,
) -> Finding:
    """Estimate a step; a forward pass that fails is an error.

    Args:
        model: as it will be trained.
        losses: of the run.
        probes: batches of `MEASURED` images each, see `probe`.
        size: images a step and device.
        precision: of the Trainer; 'mixed' computes in half precision, 'true' keeps the weights in it too.
        average: whether a moving average of the weights is kept.
    """
    kept = []
    for batch in probes:
        try:
            with _autocast(precision):
                kept.append(kept_bytes(model, losses, batch))
        except Exception as error:  # whatever it is, it would end the run
            message = f"A step of {MEASURED[0]} images fails: {type(error).__name__}: {error}"
            return Finding("memory", "error", message, "See that image_size, patch sizes and lengths fit together.")
    slope = (kept[1] - kept[0]) / (MEASURED[1] - MEASURED[0])
    half = 0.5 if precision in ("bf16-true", "16-true") else 1.0
    activations = int(half * max(kept[0] + slope * (size - MEASURED[0]), 0))
    tensors = [*model.parameters(), *losses.parameters()]
    weights = int(half * sum(p.numel() * p.element_size() for p in tensors))
    learnt = int(half * sum(p.numel() * p.element_size() for p in tensors if p.requires_grad))
    parts = {"weights": weights * (2 if average else 1), "gradients": learnt, "optimizer": 2 * learnt}
    value = {**parts, "activations": activations, "total": sum(parts.values()) + activations}
    listed = ", ".join(f"{name} {_megabytes(number)}" for name, number in value.items() if name != "total")
    message = (
        f"At least {_megabytes(value['total'])} a step and device ({listed}); activations measured on {MEASURED[0]} "
        f"and {MEASURED[1]} images and continued to {size:,}, loader and scratch room left out."
    )
    return Finding("memory", "info", message, value=value)


def _megabytes(number: int) -> str:
    return f"{number / 2**30:.2f} GiB" if number >= 2**30 else f"{number / 2**20:.0f} MiB"


def _autocast(precision: str) -> AbstractContextManager:
    return torch.autocast("cpu", dtype=torch.bfloat16) if "mixed" in precision else nullcontext()


def kept_bytes(model: VisionLanguageModel, losses: WeightedLosses, batch: Batch) -> int:
    """Bytes that a forward pass in training mode keeps for its backward pass, parameters not counted."""
    modules: tuple[nn.Module, ...] = (model, losses)
    own = {p.untyped_storage().data_ptr() for module in modules for p in module.parameters()}
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        total, _ = losses(model(batch, losses.requires), batch)
    del total  # until here the graph held what was counted, so no address came twice
    return sum(seen.values())


def probe(
    count: int,
    *,
    tokenizer: Tokenizer,
    length: int,
    image_size: int | None,
    per_image: int = 1,
    has_target: bool = False,
) -> Batch:
    """A batch of black images and sentences of one word over and over.

    Args:
        count: images in it.
        tokenizer: whose ids to use.
        length: tokens of a sentence, bos and eos included.
        image_size: pixels; None without images.
        per_image: sentences of an image.
        has_target: whether there are sentences to write besides.
    """
    special = {tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id}
    word = next((i for i in range(tokenizer.vocab_size) if i not in special), tokenizer.unk_id)
    rows = torch.arange(count).repeat_interleave(per_image)
    tokens = torch.full((len(rows), length), word)
    tokens[:, 0], tokens[:, -1] = tokenizer.bos_id, tokenizer.eos_id
    mask = torch.ones_like(tokens, dtype=torch.bool)
    images = None if image_size is None else torch.zeros(count, 3, image_size, image_size, dtype=torch.uint8)
    return Batch(
        images=images,
        tokens=tokens,
        mask=mask,
        image_ids=rows,
        target_tokens=tokens if has_target else None,
        target_mask=mask if has_target else None,
        image_rows=rows if per_image > 1 and images is not None else None,
    )
