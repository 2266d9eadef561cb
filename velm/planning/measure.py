"""Measures the memory and FLOPs of a training step on fake tensors, which have shapes but no data.

Under torch's `FakeTensorMode` a model of any size is built and run in seconds and without memory. Two steps give a line
in the number of samples. Alignment losses, which grow with the square of the batch, are run for real on embeddings
alone. A model that needs data (an RNN packs by lengths) is built and run for real on fewer samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from velm._compat import FakeTensorMode
from velm.data.text.base import Tokenizer
from velm.errors import ConfigError
from velm.losses.weighted import WeightedLosses, build_losses
from velm.negatives import HardNegatives
from velm.outputs import Batch, JointEmbeddings, VisionLanguageOutput
from velm.planning.counting import PeakMemory, counting
from velm.planning.sampling import passes_of, sample, with_samples
from velm.planning.step import Costs
from velm.pretrained.weights import skip_pretrained
from velm.prompt import Prompt
from velm.training.memory.recompute import blocks_of
from velm.training.task import VisionLanguageTask

FAKE = (32, 64)  # samples; enough for the activations to dominate the peak over the gradient of a large weight
REAL = (4, 8)  # samples
PAIRS = 4096  # rows of an alignment loss at most; more than the tiles of the tiled losses have


def probe(
    count: int,
    *,
    tokenizer: Tokenizer,
    length: int,
    image_size: int | None,
    per_image: int = 1,
    has_target: bool = False,
    has_prompt: bool = False,
) -> Batch:
    """A batch of black images and of texts that repeat one token.

    Args:
        length: T, tokens per text, bos and eos included.
        image_size: pixels; None: no images.
        has_target: whether texts are to be generated from texts.
        has_prompt: whether half of the `length` tokens are a prompt, and the others the target (`decoder.template`).

    Returns:
        images uint8 (count, 3, image_size, image_size), tokens int64 (count * per_image, T) without padding.
    """
    special = {tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id}
    token = next((i for i in range(tokenizer.vocab_size) if i not in special), tokenizer.unk_id)
    rows = torch.arange(count).repeat_interleave(per_image)
    tokens = torch.full((len(rows), length), token)
    tokens[:, 0], tokens[:, -1] = tokenizer.bos_id, tokenizer.eos_id
    mask = torch.ones_like(tokens, dtype=torch.bool)
    images = None if image_size is None else torch.zeros(count, 3, image_size, image_size, dtype=torch.uint8)
    prompt, target, target_mask = None, tokens if has_target else None, mask if has_target else None
    if has_prompt:
        read = length // 2
        prompt = Prompt(tokens[:, :0], mask[:, :0], tokens[:, :read], mask[:, :read])
        target, target_mask = torch.cat([tokens[:, :1], tokens[:, read + 1 :]], dim=1), mask[:, read:]
    return Batch(
        images=images,
        tokens=tokens,
        mask=mask,
        image_ids=rows,
        target_tokens=target,
        target_mask=target_mask,
        prompt=prompt,
        image_rows=rows if per_image > 1 and images is not None else None,
        sharing=per_image,
    )


def _with_hard_negatives(batch: Batch, count: int) -> Batch:
    """The batch of a `probe` with `count` hard negatives per text, as long as the text."""
    if count and batch.tokens is not None and batch.mask is not None:
        rows, length = batch.tokens.shape
        valid = torch.ones(rows, count, dtype=torch.bool)
        tokens, mask = (each[:, None].expand(rows, count, length) for each in (batch.tokens, batch.mask))
        batch.hard_negatives = HardNegatives(tokens, mask, valid)
    return batch


@dataclass
class _Step:
    """Bytes and FLOPs of one step."""

    bytes: int
    forward: int
    backward: int
    embeds: int


def measure(
    build: Callable[[], VisionLanguageTask], probe: Callable[[int], Batch], precision: str, rows: int = PAIRS
) -> Costs:
    """Build a task and measure the costs of a step.

    Args:
        build: returns the task; pretrained weights are not read.
        probe: returns a batch of that many samples without padding.
        rows: of a step on all devices, at which the costs of the alignment losses are exact; more than PAIRS are
            extrapolated. The fewer, the faster.

    Raises:
        ConfigError: the task cannot be built.
        Exception: the error of a step on real tensors.
    """
    try:
        return _measure(build, probe, precision, rows, FakeTensorMode(allow_non_fake_inputs=True), FAKE)
    except ConfigError:
        raise
    except Exception:  # the model reads values of a tensor; other errors are raised again on real tensors
        return _measure(build, probe, precision, rows, nullcontext(), REAL)


def _measure(
    build: Callable[[], VisionLanguageTask],
    probe: Callable[[int], Batch],
    precision: str,
    rows: int,
    mode: AbstractContextManager[Any],
    sizes: tuple[int, int],
) -> Costs:
    with mode, skip_pretrained():
        task = build()
        task.train()
        if precision.endswith("-true") and not precision.startswith("32"):
            task.to(torch.bfloat16)
        negatives = task.losses.hard_negatives
        fake = isinstance(mode, FakeTensorMode)

        def batch_of(count: int) -> Batch:
            return _with_hard_negatives(probe(count), negatives)

        sizes = _sizes(task, with_samples(task, batch_of(1)), sizes) if fake else sizes
        batches = [batch_of(number) for number in sizes]
        sampled = [sample(task, with_samples(task, batch), precision, fake) for batch in batches]
        passes = [passes_of(task, each, batch) for each, batch in zip(sampled, batches, strict=True)]
        steps = [_step(task, each, precision, fake) for each in passes]
        lines = {n: _line(sizes, [getattr(step, n) for step in steps]) for n in ("bytes", "forward", "backward")}
        sampling = {n: _line(sizes, [getattr(each, n) for each in sampled]) for n in ("bytes", "flops")}
        held = (batches[0].images, *(batch.tokens for batch, _ in passes[0]), *sampled[0].features)
        compared = len(passes[0][-1][0])  # rows of the alignment losses
        held_bytes = sum(tensor.numel() * tensor.element_size() for tensor in held if tensor is not None)
        weights = _weights(task)
    loss_bytes, loss_flops = _alignment_costs(task, rows) if steps[0].embeds else ((0.0,) * 3, (0.0,) * 3)
    return Costs(
        **weights,
        activations=lines["bytes"],
        forward_flops=lines["forward"],
        backward_flops=lines["backward"],
        sample_bytes=held_bytes // sizes[0],
        embed_bytes=steps[0].embeds // compared,
        rows=compared // sizes[0],
        captions="decoder" in task.needs,
        shared=task.losses.share,
        loss_bytes=loss_bytes,
        loss_flops=loss_flops,
        sampling_bytes=sampling["bytes"],
        sampling_flops=sampling["flops"],
    )


def _sizes(task: VisionLanguageTask, sample: Batch, sizes: tuple[int, int]) -> tuple[int, int]:
    """Numbers of samples whose tokens fill a chunk of the captioning losses: from there the peak is a line.

    A smaller batch has fewer logits and takes less than the line says.
    """
    chunks = [getattr(loss, "chunk_size", 0) for loss in task.losses.named().values() if "decoder" in loss.requires]
    if not chunks or sample.tokens is None:
        return sizes
    rows, length = sample.tokens.shape
    fewest = -(-max(chunks) // (rows * max(length - 1, 1)))
    factor = max(1, -(-fewest // sizes[0]))
    return factor * sizes[0], factor * sizes[1]


def _step(
    task: VisionLanguageTask, passes: Sequence[tuple[Batch, WeightedLosses]], precision: str, fake: bool
) -> _Step:
    """The forward passes and the backward pass without the alignment losses; see `_alignment_costs`."""
    for parameter in task.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    with counting(task, [batch for batch, _ in passes], precision, fake) as (peak, flops):
        values, size = [], 0
        for batch, losses in passes:
            output = task.model(batch, losses.requires)
            values += [loss(output, batch) for loss in losses.named().values() if not _is_alignment(loss)]
            embeds = [] if output.embeddings is None else [output.image_embeds, output.text_embeds]
            size += sum(e.numel() * e.element_size() for e in embeds)
            if output.embeddings is not None and output.embeddings.hard_negatives is not None:
                embeds.append(output.embeddings.hard_negatives.text)  # not sent to other devices
            values += [e.sum() for e in embeds]
            del output, embeds
        total = torch.stack(values).sum()
        del values
        forward = flops.get_total_flops()
        total.backward()
    aligned = any(_is_alignment(loss) for loss in task.losses.named().values())
    return _Step(peak.peak, forward, flops.get_total_flops() - forward, size if aligned else 0)


def _is_alignment(loss: Any) -> bool:
    """Whether a loss needs the embeddings and nothing else."""
    return bool(loss.aligns) and "decoder" not in loss.requires


def _alignment_costs(task: VisionLanguageTask, rows: int) -> tuple[Any, Any]:
    """Bytes and FLOPs of the alignment losses: parabolas in the rows of a batch through `rows` and two larger sizes."""
    pairs = {name: loss for name, loss in task.losses.named().items() if _is_alignment(loss)}
    configs = {
        name: options for name, options in task.model_config["losses"].items() if name.rpartition(":")[2] in pairs
    }
    width = task.model_config["embed_dim"]
    losses = build_losses(configs, embed_dim=width)
    rows = max(1, min(rows, PAIRS))
    sizes, measured = [rows, rows + -(-rows // 4), rows + 2 * -(-rows // 4)], []
    for size in sizes:
        image, text = (F.normalize(torch.randn(size, width), dim=1).requires_grad_() for _ in range(2))
        batch = Batch(images=None, tokens=None, mask=None, image_ids=torch.arange(size))
        batch.teacher = losses.stand_in_teacher(size, width)
        output = VisionLanguageOutput(embeddings=JointEmbeddings(image, text))
        with FlopCounterMode(display=False) as flops, PeakMemory() as peak:
            losses(output, batch)[0].backward()
        measured.append((peak.peak, flops.get_total_flops()))
    scale = np.array([rows**2, rows, 1])
    parabolas = [np.polyfit(np.array(sizes) / rows, values, 2) / scale for values in zip(*measured, strict=True)]
    return tuple(tuple(map(float, parabola)) for parabola in parabolas)  # type: ignore[return-value]


def _line(sizes: tuple[int, int], values: list[int]) -> tuple[float, float]:
    """(slope per sample, intercept)."""
    slope = (values[1] - values[0]) / (sizes[1] - sizes[0])
    return slope, values[0] - slope * sizes[0]


def _weights(task: VisionLanguageTask) -> dict[str, int]:
    """The fields of `Costs` about weights; FSDP2 shards blocks one by one."""

    def size(tensors: Any) -> int:
        return sum({id(p): p.numel() * p.element_size() for p in tensors}.values())

    blocks = [size(block.parameters()) for block in blocks_of(task.model)]
    return {
        "weights": size(task.parameters()),
        "trainable": size(p for p in task.parameters() if p.requires_grad),
        "in_blocks": sum(blocks),
        "largest_block": max(blocks, default=0),
        "in_losses": size(task.losses.parameters()),
        "average": size(task.parameters()) if task.ema is not None else 0,
    }
