"""How the next tokens are picked: the best continuations of all beams, or a draw."""

from __future__ import annotations

import torch
from torch import Tensor

from velm.generation.config import GenerationConfig


def best(totals: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` best continuations of each sentence, best first.

    Args:
        totals: float (b, W, V), log-probability of each of W hypotheses with each token appended.
        count: how many; fewer come back where there are fewer.

    Returns:
        hypothesis int64 (b, C) that is continued and token int64 (b, C) appended.
    """
    vocab_size = totals.shape[2]
    places = totals.flatten(1).topk(min(count, totals[0].numel()), dim=1).indices
    return places // vocab_size, places % vocab_size


def draw(log_probs: Tensor, config: GenerationConfig, generator: torch.Generator | None) -> Tensor:
    """One token int64 (R,) a row, from log_probs float (R, V) sharpened and cut as configured.

    The largest of log p + Gumbel noise is a draw from p. The noise is made where the generator lives, so a
    seed means the same on every device.
    """
    log_probs = log_probs / (1.0 if config.temperature is None else config.temperature)
    if config.top_k is not None:
        log_probs = keep_top_k(log_probs, config.top_k)
    if config.top_p is not None:
        log_probs = keep_top_p(log_probs, config.top_p)
    device = log_probs.device if generator is None else generator.device
    noise = torch.empty(log_probs.shape, device=device, dtype=log_probs.dtype).exponential_(generator=generator)
    return (log_probs - noise.to(log_probs.device).log()).argmax(dim=1)


def keep_top_k(log_probs: Tensor, count: int) -> Tensor:
    """Forbid all but the `count` most probable tokens of a row."""
    kept = log_probs.topk(min(count, log_probs.shape[1]), dim=1)
    return torch.full_like(log_probs, -torch.inf).scatter(1, kept.indices, kept.values)


def keep_top_p(log_probs: Tensor, mass: float) -> Tensor:
    """Forbid all but the fewest most probable tokens of a row whose probabilities add up to `mass`."""
    ordered, order = log_probs.softmax(dim=1).sort(dim=1, descending=True, stable=True)
    before = ordered.cumsum(dim=1) - ordered
    beyond = before >= mass
    beyond[:, 0] = False
    return log_probs.masked_fill(torch.zeros_like(beyond).scatter(1, order, beyond), -torch.inf)
