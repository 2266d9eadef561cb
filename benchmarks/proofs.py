"""Proofs that two systems do the same work: equal losses and gradients for equal weights, otherwise equal sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.harness.workload import Agreement
from benchmarks.inputs import MEAN, STD, Feed, feed
from benchmarks.ours import Trained

__all__ = ["EXACT", "differ", "flops", "in_double", "parameters", "same_function", "same_size"]

EXACT = 1e-8
"""Relative difference of float64 values that counts as rounding; the peers keep one or two constants in float32."""

CLASS_TOKEN = "image_encoder.class_token"
"""Ours is the sum of two of theirs, each of whose gradients is ours."""


def same_function(
    peer: str, ours: Trained, theirs: Any, translate: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
) -> list[Agreement]:
    """Compare the loss and every gradient in float64, with VELM's model loaded from the peer's weights.

    Args:
        peer: its name.
        ours: VELM's model; its weights are replaced.
        theirs: a `benchmarks.peers.contrastive.Peer`.
        translate: maps the peer's tensors to VELM's names.

    Raises:
        AssertionError: they differ by more than rounding.
    """
    ours.model.double(), ours.losses.double(), theirs.model.double()
    weights = translate({name: p.detach() for name, p in theirs.model.named_parameters()})
    left_out, unknown = ours.model.load_state_dict(weights, strict=False)
    assert not left_out, f"{left_out} have no weights from {peer}"
    assert not unknown, f"{unknown} are not ours"
    batch = in_double(feed(0, 8))
    loss, other = ours.loss(batch), theirs.loss(batch)
    lines = [Agreement(f"loss, against {peer}", loss.item(), other.item(), "float64, equal weights")]
    assert differ(loss, other) < EXACT, lines
    loss.backward(), other.backward()
    none = {name: torch.zeros_like(p) for name, p in theirs.model.named_parameters() if p.grad is None}
    expected = translate(none | {n: p.grad for n, p in theirs.model.named_parameters() if p.grad is not None})
    expected[CLASS_TOKEN] = expected[CLASS_TOKEN] / 2
    trained = dict(ours.model.named_parameters())
    worst = max(differ(trained[name].grad, expected[name]) for name in trained)
    assert worst < 1e-6, f"a gradient differs from {peer}'s by {worst:.1e}"
    norms = [torch.stack([t.norm() for t in side]).norm().item() for side in (
        [p.grad for p in trained.values()], [expected[name] for name in trained])]  # fmt: skip
    note = f"the largest relative difference of a parameter's gradient is {worst:.0e}"
    return [*lines, Agreement(f"norm of {len(trained)} gradients, against {peer}", *norms, note)]


def same_size(
    peer: str,
    ours: nn.Module,
    theirs: nn.Module,
    steps: tuple[Callable[[], Any], Callable[[], Any]],
    allowed: float = 0.02,
) -> list[Agreement]:
    """Compare weights in matrices, all parameters, and the operations of a forward pass over equal tensors.

    Raises:
        AssertionError: VELM's model has fewer by more than `allowed`.
    """
    lines = []
    for what, count in (("weights in matrices", matrices), ("parameters", parameters)):
        lines.append(Agreement(f"{what}, against {peer}", count(ours), count(theirs)))
    lines.append(Agreement(f"FLOPs of a step on equal shapes, against {peer}", *(flops(s) for s in steps)))
    for line in lines:
        assert line.ours >= (1 - allowed) * line.theirs, line
    return lines


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def matrices(module: nn.Module) -> int:
    """Number of weights with two or more dimensions."""
    return sum(p.numel() for p in module.parameters() if p.dim() > 1)


def flops(step: Callable[[], Any]) -> int:
    """Operations of one call by torch's counter: matrix products, convolutions, attention, forward and backward."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())


def differ(a: Tensor | None, b: Tensor | None) -> float:
    """Relative difference; of tensors, that of their norms."""
    assert a is not None
    assert b is not None
    a, b = a.detach(), b.detach()
    return float((a - b).norm()) / max(float(b.norm()), 1e-12)


def in_double(batch: Feed) -> Feed:
    """The batch in float64, with normalised images."""
    mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (MEAN, STD))
    batch.floats = (batch.pixels.double() / 255 - mean) / std
    return batch
