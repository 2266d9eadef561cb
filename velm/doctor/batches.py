"""Batches and steps: false negatives, the loss to begin with, how long a run and its warm-up are."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Sequence

import numpy as np

from velm.data.batches.samplers import ImageBatchSampler
from velm.data.batches.samples import Captions
from velm.errors import DataError
from velm.findings import Finding

__all__ = [
    "accumulation", "batch_size", "batches_by_length", "false_negative_share", "false_negatives", "first_loss",
    "optimizer_steps", "steps", "warmup",
]  # fmt: skip

LONG = 0.5  # warm-up as a part of the run above which it is a warning
EPOCHS = 1000  # Lightning's own, where neither epochs nor steps are given


def batch_size(
    counts: Sequence[int] | np.ndarray, *, size: int, devices: int, captions: Captions
) -> tuple[Finding, int, int]:
    """Does the training split fill a batch, no image twice in it?

    Args:
        counts: int (images,), sentences of each.
        size: samples a step and device.
        devices: that share a step.
        captions: as in `data.captions`.

    Returns:
        the finding; steps an epoch; samples of a step, all devices together.
    """
    places = np.arange(len(counts))
    samples = np.repeat(places, counts) if captions == "all" else places
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            sampler = ImageBatchSampler(image_of=samples, batch_size=size, world_size=devices, drop_last=True)
        except ValueError as error:
            return Finding("batch_size", "error", str(error), "Lower trainer.devices."), 0, 0
    rows = len(sampler.global_batches(0)[0])
    value = {"samples": rows, "batches": len(sampler), "devices": devices}
    if caught:
        advice = f"Lower data.batch_size to {max(1, rows // devices)} or below; its learning rate may want to follow."
        return Finding("batch_size", "warning", str(caught[0].message), advice, value), len(sampler), rows
    on = "1 device" if devices == 1 else f"{devices} devices"
    message = f"{rows:,} samples a step on {on}, {len(sampler):,} steps an epoch."
    return Finding("batch_size", "ok", message, value=value), len(sampler), rows


def batches_by_length(
    make: Callable[[], ImageBatchSampler], *, tokens: int | None, devices: int
) -> tuple[Finding, int, int]:
    """`batch_size` of batches of like length: `make` gives their sampler, `tokens` is a device's budget, if any."""
    try:
        sampler = make()
    except DataError as error:
        return Finding("batch_size", "error", str(error), "`velm fit` would end with this message."), 0, 0
    sizes = [len(batch) for batch in sampler.global_batches(0)]
    rows = round(sum(sizes) / len(sizes))
    value = {"samples": rows, "smallest": min(sizes), "largest": max(sizes), "batches": len(sizes), "devices": devices}
    budget = "" if tokens is None else f", at most {tokens:,} tokens on a device"
    message = f"{min(sizes):,} to {max(sizes):,} samples of like length a step{budget}; {len(sizes):,} steps an epoch."
    return Finding("batch_size", "ok", message, value=value), len(sizes), rows


def false_negative_share(counts: Sequence[int] | np.ndarray, batch: int) -> float:
    r"""The expected share of a batch's rows with another sentence of their image in the batch.

    For rows drawn caption by caption without replacement. Of n sentences, c of them of its image, a row meets none
    of the other c - 1 among B - 1 others with probability C(n - c, B - 1) / C(n - 1, B - 1):

        share = 1 - \sum_images  c / n  \prod_{k=1}^{c-1} (n - B - k + 1) / (n - k)

    Args:
        counts: int (images,), sentences of each.
        batch: B, rows.
    """
    total = int(np.sum(counts))
    batch = min(batch, total)
    alone = 0.0
    for count, images in zip(*np.unique(counts, return_counts=True), strict=True):
        spared = math.prod(max(0, total - batch - k + 1) / (total - k) for k in range(1, int(count)))
        alone += int(images) * int(count) / total * spared
    return 1 - alone


def false_negatives(counts: Sequence[int] | np.ndarray, *, rows: int, repeated_ids: int = 0) -> Finding:
    """What drawing caption by caption would do, and what VELM does.

    Args:
        counts: int (images,), sentences of each.
        rows: of a batch, all devices together.
        repeated_ids: records that have the image_id of another one of their split.
    """
    share = false_negative_share(counts, rows)
    value = {"drawn_by_caption": share, "velm": 0.0, "rows": rows, "repeated_ids": repeated_ids}
    message = (
        f"Drawn caption by caption, {100 * share:.1f}% of the {rows:,} rows of a batch would have a caption of their "
        f"own image among the negatives; VELM's batches and losses have none."
    )
    if repeated_ids:
        message += f" But {repeated_ids:,} records share their image_id with another record, and count as two images."
        advice = "Put the sentences of an image into one record."
        return Finding("false_negatives", "warning", message, advice, value)
    return Finding("false_negatives", "info", message, value=value)


def first_loss(losses: Collection[str], *, rows: int, per_image: int, vocab_size: int) -> Finding | None:
    """What a model that knows nothing scores; None where no loss has such a figure.

    Args:
        losses: names in the registry.
        rows: sentences of a step, all devices together.
        per_image: sentences of an image among them, which are no negatives of each other.
        vocab_size: V.
    """
    parts, value = [], {}
    if "contrastive" in losses and rows > per_image:
        value["contrastive"] = math.log(1 + rows - per_image)
        formula = f"ln({rows:,})" if per_image == 1 else f"ln(1 + {rows:,} - {per_image})"
        parts.append(f"contrastive {value['contrastive']:.2f} = {formula} nats")
    if "captioning" in losses:
        value["captioning"] = math.log(vocab_size)
        parts.append(f"captioning {value['captioning']:.2f} = ln({vocab_size:,}) nats")
    if not parts:
        return None
    message = f"A model that knows nothing scores {', '.join(parts)}: a loss that stays there has learnt nothing."
    return Finding("first_loss", "info", message, value=value)


def optimizer_steps(
    batches: int,
    *,
    accumulate: int = 1,
    max_epochs: int | None = None,
    max_steps: int = -1,
    limit: int | float | None = None,
) -> float:
    """Optimizer steps of a run, as the Trainer counts them; infinite where nothing ends it.

    Args:
        batches: of an epoch, on each device.
        accumulate: batches a step.
        max_epochs: None: Lightning's 1,000 unless `max_steps` ends the run; -1: no end.
        max_steps: -1: no end.
        limit: `limit_train_batches`: a number of batches, a part of them as a float, None for all.
    """
    if limit is not None:
        batches = int(batches * limit) if isinstance(limit, float) else min(batches, limit)
    if max_epochs is None:
        max_epochs = EPOCHS if max_steps == -1 else -1
    by_epoch = math.inf if max_epochs == -1 else max_epochs * math.ceil(batches / accumulate)
    return min(by_epoch, math.inf if max_steps == -1 else max_steps)


def steps(total: float) -> Finding:
    """How many optimizer steps the run has; none and endless are errors."""
    if total == math.inf:
        advice = "Set trainer.max_epochs or trainer.max_steps: the schedule falls towards the last step."
        return Finding("steps", "error", "Nothing ends the run: max_epochs and max_steps are -1.", advice)
    value = {"steps": int(total)}
    if total < 1:
        advice = "Raise trainer.max_epochs, trainer.max_steps or trainer.limit_train_batches."
        return Finding("steps", "error", "The run has no step at all.", advice, value)
    return Finding("steps", "info", f"{int(total):,} optimizer steps in all.", value=value)


def warmup(fraction: float, total: float) -> Finding | None:
    """Is the rate up well before the end? None where the run has no length."""
    if not 1 <= total < math.inf:
        return None
    rise = max(1, round(fraction * total))
    value = {"steps": rise, "of": int(total)}
    message = f"The rate rises over {rise:,} of {int(total):,} steps."
    if fraction > LONG:
        advice = "model.optimizer.warmup is a fraction of all steps; 0.02 to 0.1 is usual."
        return Finding("warmup", "warning", message, advice, value)
    return Finding("warmup", "ok", message, value=value)


def accumulation(accumulate: int, aligning: Sequence[str]) -> Finding | None:
    """Accumulating batches does not give a row more negatives; None where nothing is accumulated.

    Args:
        accumulate: batches a step.
        aligning: the names of the losses that have negatives.
    """
    if accumulate == 1:
        return None
    value = {"accumulate_grad_batches": accumulate}
    if not aligning:
        return Finding("accumulation", "ok", f"{accumulate} batches a step.", value=value)
    message = (
        f"accumulate_grad_batches {accumulate} averages the gradients of {accumulate} batches, but the negatives of a "
        f"row ({', '.join(aligning)}) come from one of them: that is no {accumulate} times larger batch."
    )
    advice = "For more negatives raise data.batch_size or trainer.devices (gradients stay exact); else leave it at 1."
    return Finding("accumulation", "warning", message, advice, value)
