"""Weighted averages of the weights of checkpoints."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce

import torch
from torch import Tensor

from velm.averaging.compatible import require_same_model
from velm.checkpoint import Checkpoint
from velm.data.images.transforms import transform_from_config
from velm.errors import ConfigError

__all__ = ["average", "notes", "uniform"]

STATISTICS = (".running_mean", ".running_var")


def uniform(count: int) -> list[float]:
    """The weights of an unweighted mean."""
    return [1 / count] * count


def average(checkpoints: Sequence[Checkpoint], weights: Sequence[float]) -> Checkpoint:
    """The weighted mean of the weights of checkpoints of one model, in single precision.

    Where a checkpoint has a moving average of its weights (EMA), that is averaged. Integers are those of the last
    checkpoint, and so is everything beside the weights: tokenizer, config, transform, data. The temperature is averaged
    as a logarithm, as a loss stores it. Weights of losses that not all checkpoints have are left out.

    Args:
        checkpoints: one or more.
        weights: one for each, from 0 to 1, with the sum 1. With a single 1 the result is that checkpoint, bit for bit.

    Returns:
        a checkpoint whose `origin` names the others and their weights.

    Raises:
        ConfigError: other weights.
        CheckpointError: the checkpoints are not of one model; see `require_same_model`.
    """
    _check_weights(weights, len(checkpoints))
    require_same_model(checkpoints)
    last = checkpoints[-1]
    losses = [name for name in last.loss_weights if _in_all(name, checkpoints)]
    scales, biases = ([getattr(each, name) for each in checkpoints] for name in ("logit_scale", "logit_bias"))
    logs = [None if scale is None else math.log(scale) for scale in scales]
    log_scale = _mean_number(logs, weights)
    return replace(
        last,
        weights={name: _mean([each.weights[name] for each in checkpoints], weights) for name in last.weights},
        raw_weights=None,
        loss_weights={name: _mean([each.loss_weights[name] for each in checkpoints], weights) for name in losses},
        logit_scale=None if log_scale is None else math.exp(log_scale),
        logit_bias=_mean_number(biases, weights),
        origin={
            "average": [
                {"checkpoint": str(each.path), "weight": weight}
                for each, weight in zip(checkpoints, weights, strict=True)
            ]
        },
    )


def notes(checkpoints: Sequence[Checkpoint], output: str) -> list[str]:
    """What the user of an average has to know: batch statistics, parts that have no mean, other transforms.

    Args:
        output: the file that the average is written to.
    """
    last, found = checkpoints[-1], []
    statistics = [name for name in last.weights if name.endswith(STATISTICS)]
    if any(not torch.equal(each.weights[name], last.weights[name]) for each in checkpoints for name in statistics):
        found.append(
            f"Statistics of batch norm ({statistics[0]} and {len(statistics) - 1} more) are averaged too, but are not "
            f"those of the averaged model. Measure them by an epoch that trains nothing: velm fit ... "
            f"--model.pretrained={output} --model.optimizer.lr=1e-12 --trainer.max_epochs=1; take its last.ckpt."
        )
    names = {name for each in checkpoints for name in each.loss_weights}
    missing = sorted(name for name in names if not _in_all(name, checkpoints))
    if missing:
        found.append(f"Weights of losses that not all checkpoints have are left out: {', '.join(missing)}.")
    for name in ("logit_scale", "logit_bias"):
        values = [getattr(each, name) for each in checkpoints]
        if None in values and set(values) != {None}:
            found.append(f"{name} is left out, because not all checkpoints have one.")
    prepared = {str(each.path): transform_from_config(each.transform).config() for each in checkpoints}
    others = [path for path, transform in prepared.items() if transform != prepared[str(last.path)]]
    if others:
        found.append(
            f"Images are prepared as {prepared[others[0]]} for {others[0]} and as {prepared[str(last.path)]} for "
            f"{last.path}; the average has the latter."
        )
    return found


def _check_weights(weights: Sequence[float], count: int) -> None:
    listed = " ".join(f"{weight:g}" for weight in weights)
    if len(weights) != count:
        raise ConfigError(
            f"--weights has {len(weights)} numbers ({listed}) for {count} checkpoints: give one for each, or none for "
            f"the unweighted mean."
        )
    if not all(0 <= weight <= 1 for weight in weights) or not math.isclose(math.fsum(weights), 1, abs_tol=1e-6):
        raise ConfigError(
            f"--weights {listed} have the sum {math.fsum(weights):g}: give numbers from 0 to 1 with the sum 1, "
            f"e.g. {' '.join(f'{weight:.2g}' for weight in uniform(count))}."
        )


def _in_all(name: str, checkpoints: Sequence[Checkpoint]) -> bool:
    """Whether all checkpoints have this weight of a loss, in one shape."""
    shapes = {each.loss_weights[name].shape if name in each.loss_weights else None for each in checkpoints}
    return len(shapes) == 1 and None not in shapes


def _mean(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    last = tensors[-1]
    if not last.is_floating_point():
        return last
    if all(tensor.dtype == last.dtype and torch.equal(tensor, last) for tensor in tensors):
        return last  # exact, and -inf of a mask stays
    dtype = torch.promote_types(last.dtype, torch.float32)
    terms = (weight * tensor.to(dtype) for tensor, weight in zip(tensors, weights, strict=True) if weight)
    return reduce(torch.add, terms).to(last.dtype)


def _mean_number(values: Sequence[float | None], weights: Sequence[float]) -> float | None:
    present = [value for value in values if value is not None]
    if len(present) < len(values):
        return None
    return math.fsum(weight * value for weight, value in zip(weights, present, strict=True))
