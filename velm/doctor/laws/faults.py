"""What gradients of several processes that are wrong tell of how they came to be."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from velm.doctor.laws.compare import ROUNDING, farthest, gap, gradients
from velm.outputs import Batch
from velm.training.task import VisionLanguageTask

__all__ = ["fault_of"]

Gradients = Mapping[str, Tensor]
HALF = 0.5  # two processes


def fault_of(
    task: VisionLanguageTask, batch: Batch, expected: Mapping[str, Gradients], found: Mapping[str, Gradients]
) -> str:
    """Name the fault.

    A loss of gathered embeddings has its own parameters (a temperature) on every process, so their gradient is right
    even where none comes back through the gather: that tells a gather without gradient from a mean taken twice.

    Args:
        task: whose losses, in the mode in which the gradients were taken.
        batch: the whole batch.
        expected: by case, of one process; a case is the name of a loss, or all of them.
        found: the same of several.
    """
    alone = {name: name for name in task.losses.named() if name in expected}
    if not alone:
        alone = {next(iter(task.losses.named())): next(iter(expected))}
    wrong = {name: case for name, case in alone.items() if gap(expected[case], found[case]) > ROUNDING}
    whole = {case: _factor(expected[case], found[case]) for case in alone.values()}
    if not wrong:
        return "every loss alone is right, but their weighted sum is not: look at how losses are added up."
    ambiguous = len(alone) == 1 and not _own(expected[next(iter(alone.values()))], next(iter(alone)))
    if all(_is(factor, HALF) for factor in whole.values()):
        twice = "averaged twice: every gradient is half of what it is to be, with two processes."
        aligning = task.losses.named()[next(iter(alone))].aligns
        return f"{twice} Or gathered without gradient: the loss has no parameter that would tell." if (
            ambiguous and aligning
        ) else twice  # fmt: skip
    if all(_is(factor, 1 / HALF) for factor in whole.values()):
        return "summed, not averaged: every gradient is twice what it is to be, with two processes."
    return " ".join(_of_loss(task, batch, name, expected[case], found[case]) for name, case in wrong.items())


def _of_loss(task: VisionLanguageTask, batch: Batch, name: str, expected: Gradients, found: Gradients) -> str:
    """The fault of one loss."""
    aligning = task.losses.named()[name].aligns
    towers = set(expected) - set(_own(expected, name))
    factor = _factor(*({n: g for n, g in side.items() if n in towers} for side in (expected, found)))
    if aligning and (_is(factor, HALF) or _is(factor, 0.0)):
        share = "half of what it is" if _is(factor, HALF) else "0, and not what it is"
        return f"{name}: gathered without gradient. The towers' gradient is {share} to be."
    if aligning and (lacking := _one_sided(expected, found)):
        return (
            f"{name}: gathered without gradient. What other processes' samples ask of the {lacking} does not reach it."
        )
    if gap(_mean_of_halves(task, batch, name), found) <= ROUNDING:
        if aligning:
            return f"{name}: not gathered. Each process compares its own images and sentences only."
        return f"{name}: each process takes the mean over its own tokens, and not over those of all (target_count)."
    figure, where = farthest(expected, found)
    return f"{name}: the gradients of two processes differ from those of one, most ({figure:.1e}) for {where}."


def _one_sided(expected: Gradients, found: Gradients) -> str | None:
    """The encoder whose gradient alone is wrong; None if neither or both are."""
    wrong = []
    for side in ("image", "text"):
        names = [name for name in expected if name.startswith((f"model.{side}_encoder.", f"model.{side}_projection."))]
        if gap({n: expected[n] for n in names}, {n: found[n] for n in names if n in found}) > ROUNDING:
            wrong.append(f"{side} encoder")
    return wrong[0] if len(wrong) == 1 else None


def _own(gradients: Gradients, loss: str) -> list[str]:
    """The parameters of a loss itself that have a gradient."""
    return [name for name, g in gradients.items() if name.startswith(f"losses.{loss}.") and bool(g.abs().max() > 0)]


def _factor(expected: Gradients, found: Gradients) -> float | None:
    """The number that `found` is a multiple of `expected` by; None where it is none."""
    one = torch.cat([g.flatten() for g in expected.values()] or [torch.zeros(1)])
    other = torch.cat([found.get(name, torch.zeros_like(g)).flatten() for name, g in expected.items()] or [one])
    square = float(one @ one)
    factor = float(one @ other) / square if square else 1.0
    apart = float((other - factor * one).abs().max())
    return factor if apart <= ROUNDING * max(float(one.abs().max()), 1e-30) else None


def _is(factor: float | None, value: float) -> bool:
    return factor is not None and abs(factor - value) <= ROUNDING


def _mean_of_halves(task: VisionLanguageTask, batch: Batch, name: str) -> dict[str, Tensor]:
    """The gradient where each half of the batch knows nothing of the other."""
    task.zero_grad()
    for half in batch.micro_batches(len(batch) // 2):
        (HALF * task.losses.named()[name](task.model(half, task.needs), half)).backward()
    return gradients(task)
