"""The gradient of each loss by itself, on the parameters that several losses share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, distributed, nn

__all__ = ["gradient_of", "mean_over_devices", "products_of", "shared_parameters"]


def shared_parameters(losses: Mapping[str, Tensor], parameters: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    """Those that more than one loss reaches, as the graphs of all devices say.

    Args:
        losses: {name: float ()} with their graphs.
        parameters: which to look at, the same on every device.
    """
    places = {id(parameter): place for place, parameter in enumerate(parameters)}
    reached = torch.zeros(len(losses), len(parameters), dtype=torch.uint8)
    for row, loss in enumerate(losses.values()):
        found = [places[leaf] for leaf in _leaves(loss) if leaf in places]
        reached[row, found] = 1
    if _several():
        device = next(iter(losses.values())).device
        reached = reached.to(device)
        distributed.all_reduce(reached, op=distributed.ReduceOp.MAX)
    shared = (reached.sum(0) > 1).tolist()
    return [parameter for parameter, both in zip(parameters, shared, strict=True) if both]


def _leaves(loss: Tensor) -> set[int]:
    """The ids of the leaves that a loss's graph ends in."""
    waiting, seen, leaves = [loss.grad_fn], set(), set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.add(id(node.variable))
        waiting.extend(following for following, _ in node.next_functions)
    return leaves


def gradient_of(loss: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    """This device's gradient of a loss by parameters, as one vector, float (P,); the graph is kept.

    `parameter.grad` stays as it is, and DDP hears nothing of it.
    """
    found = torch.autograd.grad(loss, list(parameters), retain_graph=True, allow_unused=True)
    pieces = [p.new_zeros(p.numel()) if g is None else g.flatten() for p, g in zip(parameters, found, strict=True)]
    return torch.cat(pieces)


def mean_over_devices(gradient: Tensor) -> Tensor:
    """What DDP makes of a gradient, in place."""
    if _several():
        distributed.all_reduce(gradient)
        gradient /= distributed.get_world_size()
    return gradient


def products_of(gradients: Sequence[Tensor]) -> Tensor:
    """g_i . g_j of vectors float (P,), float (k, k)."""
    wide = [gradient if gradient.dtype.itemsize >= 4 else gradient.float() for gradient in gradients]
    rows = [torch.stack([torch.dot(a, b) for b in wide]) for a in wide]  # no matrix product, which may be TF32
    return torch.stack(rows)


def _several() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
