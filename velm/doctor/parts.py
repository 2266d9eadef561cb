"""Checks of the model's parts: parameters, learning rates, maximum lengths, memory of a step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from velm.findings import Finding
from velm.planning.step import Costs, Setup
from velm.planning.step import memory as memory_of
from velm.pretrained.weights import names_weights
from velm.registry import split_config

MAX_LR = 3e-4  # of pretrained weights with AdamW; a higher rate is a warning


def parameters(parts: Mapping[str, nn.Module]) -> Finding:
    """Trainable and frozen parameters of each part."""
    value = {}
    for name, part in parts.items():
        sizes = [(p.numel(), p.requires_grad) for p in part.parameters()]
        if sizes:
            trainable = sum(size for size, trained in sizes if trained)
            value[name] = {"trainable": trainable, "frozen": sum(size for size, _ in sizes) - trainable}
    total = {kind: sum(part[kind] for part in value.values()) for kind in ("trainable", "frozen")}
    listed = ", ".join(f"{name} {_counted(part)}" for name, part in value.items())
    message = f"{_counted(total)} parameters: {listed}."
    if not total["trainable"]:
        advice = "Remove a part from model.freeze or model.train_last, or set its option `trainable`."
        return Finding("parameters", "error", f"Nothing is trainable. {message}", advice, value)
    return Finding("parameters", "info", message, value=value)


def _counted(sizes: Mapping[str, int]) -> str:
    frozen = f" (+ {_short(sizes['frozen'])} frozen)" if sizes["frozen"] else ""
    return _short(sizes["trainable"]) + frozen


def _short(number: int) -> str:
    for unit, name in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= unit:
            return f"{number / unit:.3g}{name}"
    return str(number)


def is_pretrained(config: Any) -> bool:
    """Whether a part config names pretrained weights, see `names_weights`; None: there is no such part."""
    return config is not None and names_weights(*split_config(config))


def learning_rates(
    configs: Mapping[str, Any], parts: Mapping[str, nn.Module | None], *, lr: float, lr_scale: Mapping[str, float]
) -> list[Finding]:
    """A finding for each pretrained and trainable part; a warning if its `lr * lr_scale` is above 3e-4.

    Args:
        configs: part configs by name: image_encoder, text_encoder, decoder; `adapt`, adapters by part.
        parts: the modules by the same names; None: the model has no such part.
    """
    findings = []
    for name, part in parts.items():
        if part is None or not is_pretrained(configs.get(name)) or name in (configs.get("adapt") or {}):
            continue  # adapters begin at zero and take higher rates
        trained = any(p.requires_grad for p in part.parameters())
        rate = lr * lr_scale.get(name, 1.0)
        value = {"part": name, "lr": rate, "limit": MAX_LR}
        if trained and rate > MAX_LR * (1 + 1e-6):
            message = f"The {name} is pretrained and trained at a learning rate of {rate:g}, above {MAX_LR:g}."
            scale = 0.1 * MAX_LR / lr
            advice = f"model.optimizer.lr_scale={{{name}: {scale:.2g}}}, model.train_last={{{name}: 2}}, or freeze it."
            findings.append(Finding("learning_rate", "warning", message, advice, value))
        elif trained:
            message = f"The {name} is pretrained and trained at a learning rate of {rate:g}, at most {MAX_LR:g}."
            findings.append(Finding("learning_rate", "ok", message, value=value))
    return findings


def lengths(parts: Mapping[str, nn.Module | None], *, longest: int, max_length: int) -> Finding:
    """Whether text encoder and decoder hold the longest text.

    Args:
        parts: text_encoder and decoder; None: the model has no such part.
        longest: tokens of the longest text of the data, bos and eos included.
        max_length: tokens to which the data module cuts texts.
    """
    needed = min(longest, max_length)
    limits = {name: getattr(part, "max_length", None) for name, part in parts.items()}
    value = {"longest": needed, **limits}
    exceeded = [(name, limit) for name, limit in limits.items() if limit is not None and needed > limit]
    if exceeded:
        name, limit = exceeded[0]
        message = (
            f"The {name} holds {limit} tokens, and texts have up to {needed}: the run stops at the first longer one."
        )
        advice = f"Lower data.max_length to {limit}, or raise model.{name}.max_length to {needed}."
        return Finding("lengths", "error", message, advice, value)
    return Finding("lengths", "ok", f"Every part holds texts of {needed} tokens.", value=value)


def memory(costs: Costs, setup: Setup, *, length: int) -> Finding:
    """The peak memory of a training step on a device, by part, as `velm plan` computes it."""
    value = memory_of(costs, setup)
    listed = ", ".join(f"{name} {_bytes(number)}" for name, number in value.items() if number and name != "total")
    message = (
        f"A step of {setup.batch:,} samples with texts of {length} tokens takes {_bytes(value['total'])} per device "
        f"({listed}), without data loading and scratch buffers of kernels."
    )
    return Finding("memory", "info", message, value=value)


def _bytes(number: int) -> str:
    return f"{number / 2**30:.2f} GiB" if number >= 2**30 else f"{number / 2**20:.1f} MiB"
