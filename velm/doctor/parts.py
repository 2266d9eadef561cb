"""The model's parts: how much there is to learn, how gently, how long a sentence they hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from velm.findings import Finding
from velm.registry import split_config

__all__ = ["is_pretrained", "learning_rate", "lengths", "parameters"]

GENTLE = 3e-4  # AdamW's rate on pretrained weights above which it is a warning


def parameters(parts: Mapping[str, nn.Module]) -> Finding:
    """Trainable and frozen parameters of each part."""
    value = {}
    for name, part in parts.items():
        sizes = [(p.numel(), p.requires_grad) for p in part.parameters()]
        if sizes:
            trainable = sum(size for size, learnt in sizes if learnt)
            value[name] = {"trainable": trainable, "frozen": sum(size for size, _ in sizes) - trainable}
    total = {kind: sum(part[kind] for part in value.values()) for kind in ("trainable", "frozen")}
    listed = ", ".join(f"{name} {_counted(part)}" for name, part in value.items())
    message = f"{_counted(total)} parameters: {listed}."
    if not total["trainable"]:
        advice = "Take a part out of model.freeze, or set its trainable."
        return Finding("parameters", "error", f"Nothing is to be learnt. {message}", advice, value)
    return Finding("parameters", "info", message, value=value)


def _counted(sizes: Mapping[str, int]) -> str:
    frozen = f" (+ {_short(sizes['frozen'])} frozen)" if sizes["frozen"] else ""
    return _short(sizes["trainable"]) + frozen


def _short(number: int) -> str:
    for unit, name in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= unit:
            return f"{number / unit:.3g}{name}"
    return str(number)


def is_pretrained(spec: Any) -> bool:
    """Whether a spec asks for somebody's weights: `weights`, `pretrained: true`, or `hf/...` without a config."""
    if spec is None:
        return False
    name, options = split_config(spec)
    if options.get("pretrained") is not None:
        return bool(options["pretrained"])
    return options.get("weights") is not None or (name.startswith("hf/") and options.get("config") is None)


def learning_rate(
    specs: Mapping[str, Any], parts: Mapping[str, nn.Module | None], *, lr: float, lr_scale: Mapping[str, float]
) -> list[Finding]:
    """Pretrained parts that are trained at more than 3e-4, their own `lr_scale` counted in.

    Args:
        specs: of image_encoder, text_encoder, decoder.
        parts: the built ones, by the same names.
        lr: peak rate.
        lr_scale: factor on it by part.
    """
    findings = []
    for name, part in parts.items():
        if part is None or not is_pretrained(specs.get(name)):
            continue
        learnt = any(p.requires_grad for p in part.parameters())
        rate = lr * lr_scale.get(name, 1.0)
        value = {"part": name, "lr": rate, "limit": GENTLE}
        if learnt and rate > GENTLE * (1 + 1e-6):
            message = f"The {name} is pretrained and trained at a rate of {rate:g}, above {GENTLE:g}: it may forget."
            scale = 0.1 * GENTLE / lr
            advice = f"model.optimizer.lr_scale={{{name}: {scale:.2g}}}, fewer stages (trainable: 2), or freeze it."
            findings.append(Finding("learning_rate", "warning", message, advice, value))
        elif learnt:
            message = f"The {name} is pretrained and trained at a rate of {rate:g}, at most {GENTLE:g}."
            findings.append(Finding("learning_rate", "ok", message, value=value))
    return findings


def lengths(parts: Mapping[str, nn.Module | None], *, longest: int, max_length: int) -> Finding:
    """Do text encoder and decoder hold the longest sentence there will be?

    Args:
        parts: text_encoder and decoder, None where there is none.
        longest: tokens of the longest sentence of the data, bos and eos included.
        max_length: of the data, which cuts what is longer.
    """
    needed = min(longest, max_length)
    limits = {name: getattr(part, "max_length", None) for name, part in parts.items()}
    value = {"longest": needed, **limits}
    short = [(name, limit) for name, limit in limits.items() if limit is not None and needed > limit]
    if short:
        name, limit = short[0]
        message = f"The {name} holds {limit} tokens, and sentences have up to {needed}: the run stops at the first."
        advice = f"Lower data.max_length to {limit}, or raise model.{name}.max_length to {needed}."
        return Finding("lengths", "error", message, advice, value)
    return Finding("lengths", "ok", f"Every part holds sentences of {needed} tokens.", value=value)
