"""Checks of batches and steps: false negatives, first loss, length of the run and of its warm-up."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Sequence

import numpy as np

from velm.data.batches.samplers import ImageBatchSampler
from velm.data.batches.samples import Captions
from velm.errors import DataError
from velm.findings import Finding

LONG = 0.5  # fraction of the run; a longer warm-up is a warning
EPOCHS = 1000  # Lightning's default without max_epochs and max_steps


def batch_size(
    counts: Sequence[int] | np.ndarray, *, size: int, devices: int, captions: Captions
) -> tuple[Finding, int, int]:
    """Whether the training split fills a batch of distinct images.

    Args:
        counts: int (images,), texts per image.
        size: samples per step and device.

    Returns:
        the finding; batches per epoch; samples per step on all devices.
    """
    images = np.arange(len(counts))
    samples = np.repeat(images, counts) if captions == "all" else images
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            sampler = ImageBatchSampler(image_of=samples, batch_size=size, world_size=devices, drop_last=True)
        except ValueError as error:
            return Finding("batch_size", "error", str(error), "Lower trainer.devices."), 0, 0
    rows = len(sampler.global_batches(0)[0])
    value = {"samples": rows, "batches": len(sampler), "devices": devices}
    if caught:
        advice = f"Lower data.batch_size to {max(1, rows // devices)} or below; and adapt the learning rate."
        return Finding("batch_size", "warning", str(caught[0].message), advice, value), len(sampler), rows
    on = "1 device" if devices == 1 else f"{devices} devices"
    message = f"{rows:,} samples per step on {on}, {len(sampler):,} steps per epoch."
    return Finding("batch_size", "ok", message, value=value), len(sampler), rows


def batches_by_length(
    make: Callable[[], ImageBatchSampler], *, tokens: int | None, devices: int
) -> tuple[Finding, int, int]:
    """`batch_size` for batches of similar length: `make` builds the sampler, `tokens` is the budget per device."""
    try:
        sampler = make()
    except DataError as error:
        return Finding("batch_size", "error", str(error), "`velm fit` would end with this message."), 0, 0
    sizes = [len(batch) for batch in sampler.global_batches(0)]
    rows = round(sum(sizes) / len(sizes))
    value = {"samples": rows, "smallest": min(sizes), "largest": max(sizes), "batches": len(sizes), "devices": devices}
    budget = "" if tokens is None else f", at most {tokens:,} tokens on a device"
    message = (
        f"{min(sizes):,} to {max(sizes):,} samples of similar length per step{budget}; {len(sizes):,} steps per epoch."
    )
    return Finding("batch_size", "ok", message, value=value), len(sizes), rows


def false_negative_share(counts: Sequence[int] | np.ndarray, batch: int) -> float:
    r"""The expected fraction of a batch's rows with another caption of their image in the batch.

    For captions drawn without replacement. With n captions, c of them of its image, a row meets none of the other c - 1
    among B - 1 rows with probability C(n - c, B - 1) / C(n - 1, B - 1):

        share = 1 - \sum_images  c / n  \prod_{k=1}^{c-1} (n - B - k + 1) / (n - k)

    Args:
        counts: int (images,), captions per image.
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
    """False negatives of a sampler that draws captions, and of VELM's, which draws images.

    Args:
        counts: int (images,), captions per image.
        repeated_ids: records that share their image_id with an earlier record of the split.
    """
    share = false_negative_share(counts, rows)
    value = {"drawn_by_caption": share, "velm": 0.0, "rows": rows, "repeated_ids": repeated_ids}
    message = (
        f"Drawn caption by caption, {100 * share:.1f}% of the {rows:,} rows of a batch would have a caption of their "
        f"own image among the negatives; VELM's batches and losses have none."
    )
    if repeated_ids:
        message += (
            f" But {repeated_ids:,} records share their image_id with another record and count as separate images."
        )
        advice = "Put all captions of an image into one record."
        return Finding("false_negatives", "warning", message, advice, value)
    return Finding("false_negatives", "info", message, value=value)


def first_loss(
    losses: Collection[str], *, rows: int, per_image: int, vocab_size: int, hard_negatives: int = 0
) -> Finding | None:
    """The losses of uniform predictions; None without a contrastive or captioning loss.

    Args:
        rows: texts per step, on all devices.
        per_image: texts per image, which are not negatives of each other.
        hard_negatives: further negatives of each image.
    """
    parts, value = [], {}
    if "contrastive" in losses and rows > per_image:
        value["contrastive"] = (math.log(1 + rows - per_image) + math.log(1 + rows - per_image + hard_negatives)) / 2
        formula = f"ln({rows:,})" if per_image == 1 else f"ln(1 + {rows:,} - {per_image})"
        if hard_negatives:
            formula = f"the mean of {formula} and of ln({1 + rows - per_image + hard_negatives:,})"
        parts.append(f"contrastive {value['contrastive']:.2f} = {formula} nats")
    if "captioning" in losses:
        value["captioning"] = math.log(vocab_size)
        parts.append(f"captioning {value['captioning']:.2f} = ln({vocab_size:,}) nats")
    if not parts:
        return None
    message = f"Uniform predictions have the losses {', '.join(parts)}: a model whose loss stays there learns nothing."
    return Finding("first_loss", "info", message, value=value)


def optimizer_steps(
    batches: int,
    *,
    accumulate: int = 1,
    max_epochs: int | None = None,
    max_steps: int = -1,
    limit: int | float | None = None,
) -> float:
    """Optimizer steps of a run, as the Trainer counts them; inf without a limit.

    Args:
        batches: per epoch, on each device.
        accumulate: batches per step.
        max_epochs: None: Lightning's 1,000 unless `max_steps` is set; -1: no limit.
        max_steps: -1: no limit.
        limit: `limit_train_batches`: a number of batches, or a fraction of them as a float; None: all.
    """
    if limit is not None:
        batches = int(batches * limit) if isinstance(limit, float) else min(batches, limit)
    if max_epochs is None:
        max_epochs = EPOCHS if max_steps == -1 else -1
    by_epoch = math.inf if max_epochs == -1 else max_epochs * math.ceil(batches / accumulate)
    return min(by_epoch, math.inf if max_steps == -1 else max_steps)


def steps(total: float) -> Finding:
    """The number of optimizer steps; 0 and infinity are errors."""
    if total == math.inf:
        advice = "Set trainer.max_epochs or trainer.max_steps: the schedule ends at the last step."
        return Finding("steps", "error", "Nothing ends the run: max_epochs and max_steps are -1.", advice)
    value = {"steps": int(total)}
    if total < 1:
        advice = "Raise trainer.max_epochs, trainer.max_steps or trainer.limit_train_batches."
        return Finding("steps", "error", "The run has no step.", advice, value)
    return Finding("steps", "info", f"{int(total):,} optimizer steps.", value=value)


def warmup(fraction: float, total: float) -> Finding | None:
    """Whether the warm-up is at most half of the run; None if the run has no steps or no end."""
    if not 1 <= total < math.inf:
        return None
    warmup_steps = max(1, round(fraction * total))
    value = {"steps": warmup_steps, "of": int(total)}
    message = f"The learning rate rises over {warmup_steps:,} of {int(total):,} steps."
    if fraction > LONG:
        advice = "model.optimizer.warmup is a fraction of all steps; 0.02 to 0.1 is usual."
        return Finding("warmup", "warning", message, advice, value)
    return Finding("warmup", "ok", message, value=value)


def accumulation(accumulate: int, aligning: Sequence[str]) -> Finding | None:
    """A warning that accumulated batches do not add negatives; None without accumulation."""
    if accumulate == 1:
        return None
    value = {"accumulate_grad_batches": accumulate}
    if not aligning:
        return Finding("accumulation", "ok", f"{accumulate} batches per step.", value=value)
    message = (
        f"accumulate_grad_batches {accumulate} averages the gradients of {accumulate} batches, but the negatives of a "
        f"row ({', '.join(aligning)}) come from its own batch: this is not a {accumulate} times larger batch."
    )
    advice = "For more negatives raise data.batch_size or trainer.devices (gradients stay exact)."
    return Finding("accumulation", "warning", message, advice, value)
