"""How the next tokens are picked: the best continuations of all beams, or a draw."""

from __future__ import annotations

import torch
from torch import Tensor

from velm.generation.config import GenerationConfig
from velm.generation.phrases import Phrases

Picked = tuple[Tensor, Tensor, Tensor]
"""For C continuations of each of b sentences, best first: which hypothesis is continued, int64 (b, C), the token
appended, int64 (b, C), and the token's score, float (b, C)."""


RUN = 128
"""Tokens that `largest` looks at together."""


def log_sum_exp(scores: Tensor) -> Tensor:
    """As `scores.logsumexp(dim=1)` of float (R, V); on the CPU a few rows at a time, so that they stay in its cache."""
    few = 4 if scores.device.type == "cpu" else max(1, len(scores))
    return torch.cat([rows.logsumexp(dim=1) for rows in scores.split(few)])


def best(totals: Tensor, scores: Tensor, count: int) -> Picked:
    """The `count` best continuations of each sentence, best first.

    Args:
        totals: float (b, W), what each of W hypotheses has.
        scores: float (b, W, V), what each token would add.
        count: how many; fewer come back where there are fewer.
    """
    if count == 1 == scores.shape[1]:  # greedy
        values, words = largest(scores[:, 0], 1)
        return torch.zeros_like(words), words, values
    values, words = largest(scores, min(count, scores.shape[2]))  # no other token of a hypothesis can be chosen
    places = (totals[:, :, None] + values).flatten(1).topk(min(count, words[0].numel()), dim=1).indices
    return _at(places, words, values)


def best_by_need(totals: Tensor, scores: Tensor, count: int, phrases: Phrases, states: Tensor) -> Picked:
    """As `best`, dealt out over hypotheses by how much they still have to include.

    First the best continuation of each need (the number of words that are missing at least), those best first; then
    the second best of each, and so on: Post and Vilar's dynamic beam allocation (2018, arXiv 1804.06609), where a
    place that a need has no use for falls to the others.

    Args:
        totals, scores, count: as `best` takes them.
        phrases: what has to be included.
        states: int64 (b, W), of the hypotheses.
    """
    symbols = phrases.symbols.expand(*states.shape, -1)
    others, words = largest(scores.index_fill(2, phrases.symbols, -torch.inf), min(count, scores.shape[2]))
    words = torch.cat([words, symbols], dim=2)  # (b, W, C): each word once, but for those at -inf
    values = torch.cat([others, scores.gather(2, symbols)], dim=2)
    need = phrases.remaining(phrases.advance(states[:, :, None].expand_as(words), words)).flatten(1)
    ordered, order = (totals[:, :, None] + values).flatten(1).sort(dim=1, descending=True, stable=True)
    need = need.gather(1, order)
    turn = torch.zeros_like(need)  # the place of a continuation among those of its need
    for each in need.unique().tolist():
        turn = torch.where(need == each, (need == each).cumsum(dim=1), turn)
    turn = turn.masked_fill(ordered == -torch.inf, turn.shape[1] + 1)
    return _at(order.gather(1, turn.argsort(dim=1, stable=True)[:, :count]), words, values)


def largest(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """As `scores.topk(count)` over the last of dimensions (..., V), in a third of the time where V is large.

    The largest numbers lie in those runs of RUN neighbours that have the largest maxima: these are found first.
    """
    runs = scores.shape[-1] // RUN
    if runs < 2 * count:
        return scores.topk(count)
    whole = scores[..., : runs * RUN].unflatten(-1, (runs, RUN))
    chosen = whole.amax(dim=-1).topk(count).indices[..., None]  # (..., count, 1)
    few = whole.gather(-2, chosen.expand(*chosen.shape[:-1], RUN)).flatten(-2)
    places = (chosen * RUN + torch.arange(RUN, device=scores.device)).flatten(-2)
    rest = torch.arange(runs * RUN, scores.shape[-1], device=scores.device).expand(*scores.shape[:-1], -1)
    values, at = torch.cat([few, scores[..., runs * RUN :]], dim=-1).topk(count)
    return values, torch.cat([places, rest], dim=-1).gather(-1, at)


def _at(places: Tensor, words: Tensor, values: Tensor) -> Picked:
    """The continuations that stand at places (b, C) of the flattened hypotheses' words and values (b, W, c)."""
    return places // words.shape[2], words.flatten(1).gather(1, places), values.flatten(1).gather(1, places)


def draw(log_probs: Tensor, config: GenerationConfig, generator: torch.Generator | None) -> Tensor:
    """One token int64 (R,) a row, from log_probs float (R, V), up to a constant a row, sharpened and cut as configured.

    The largest of log p + Gumbel noise is a draw from p. The noise is made where the generator lives, so a
    seed means the same on every device.
    """
    log_probs = log_probs / (1.0 if config.temperature is None else config.temperature)
    if config.top_k is not None:
        log_probs = keep_top_k(log_probs, config.top_k)
    if config.top_p is not None:
        log_probs = keep_top_p(log_probs, config.top_p)
    if config.min_p is not None:
        log_probs = keep_min_p(log_probs, config.min_p)
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


def keep_min_p(log_probs: Tensor, share: float) -> Tensor:
    """Forbid the tokens of a row less than `share` times as probable as its most probable one."""
    likeliest = log_probs.amax(dim=1, keepdim=True)
    return log_probs.masked_fill((log_probs - likeliest).exp() < share, -torch.inf)
