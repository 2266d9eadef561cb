"""The choice of the next tokens from their scores: the best continuations of all beams, or a random draw.

Shapes: b searches, W hypotheses each, V tokens of the vocabulary, C continuations chosen.
"""

from __future__ import annotations

import torch
from torch import Tensor

from velm.generation.config import GenerationConfig
from velm.generation.phrases import Phrases

Continuations = tuple[Tensor, Tensor, Tensor]
"""C continuations of each of b searches, best first: the parent hypothesis, int64 (b, C), the token appended,
int64 (b, C), and the token's score, float (b, C)."""

BLOCK = 128
"""Neighbouring tokens whose maximum `largest` compares first."""


def log_sum_exp(scores: Tensor) -> Tensor:
    """As `scores.logsumexp(dim=1)` of float (R, V).

    On a CPU it takes a few rows at a time, so that its temporaries stay in the cache: 5 beams over 49,408 tokens are
    written in 0.77 of the time (`python -m benchmarks generate_beams5`).
    """
    rows = 4 if scores.device.type == "cpu" else max(1, len(scores))
    return torch.cat([block.logsumexp(dim=1) for block in scores.split(rows)])


def best(totals: Tensor, scores: Tensor, count: int) -> Continuations:
    """The `count` best continuations of each search, best first.

    Args:
        totals: float (b, W), score of each hypothesis.
        scores: float (b, W, V), what each token would add.
        count: C; fewer come back where there are fewer.
    """
    if count == 1 == scores.shape[1]:  # greedy
        values, tokens = largest(scores[:, 0], 1)
        return torch.zeros_like(tokens), tokens, values
    values, tokens = largest(scores, min(count, scores.shape[2]))  # no other token of a hypothesis can be chosen
    indices = (totals[:, :, None] + values).flatten(1).topk(min(count, tokens[0].numel()), dim=1).indices
    return _gather(indices, tokens, values)


def best_by_need(totals: Tensor, scores: Tensor, count: int, phrases: Phrases, states: Tensor) -> Continuations:
    """As `best`, but alternating between hypotheses that have fewer or more of the required phrases.

    The need of a continuation is the least number of tokens until all required phrases are complete. First comes the
    best continuation of each need, in order of score, then the second best of each, and so on: the dynamic beam
    allocation of Post and Vilar (2018, arXiv 1804.06609). Places that a need cannot fill go to the others.

    Args:
        totals: float (b, W), score of each hypothesis.
        scores: float (b, W, V), what each token would add.
        states: int64 (b, W), automaton states of the hypotheses.
    """
    symbols = phrases.symbols.expand(*states.shape, -1)
    others, tokens = largest(scores.index_fill(2, phrases.symbols, -torch.inf), min(count, scores.shape[2]))
    tokens = torch.cat([tokens, symbols], dim=2)  # (b, W, c): no token twice, except those at -inf
    values = torch.cat([others, scores.gather(2, symbols)], dim=2)
    need = phrases.remaining(phrases.advance(states[:, :, None].expand_as(tokens), tokens)).flatten(1)
    ordered, order = (totals[:, :, None] + values).flatten(1).sort(dim=1, descending=True, stable=True)
    need = need.gather(1, order)
    turn = torch.zeros_like(need)  # rank of a continuation among those of its need
    for each in need.unique().tolist():
        turn = torch.where(need == each, (need == each).cumsum(dim=1), turn)
    turn = turn.masked_fill(ordered == -torch.inf, turn.shape[1] + 1)
    return _gather(order.gather(1, turn.argsort(dim=1, stable=True)[:, :count]), tokens, values)


def largest(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """As `scores.topk(count)` over the last dimension of (..., V): values and indices.

    Faster for large V: the largest values lie in the blocks of BLOCK neighbours that have the largest maxima, and only
    these blocks are searched. With 49,408 tokens on a CPU it takes a tenth (count 1) to a fifth (count 10) of the time
    of `topk`; `python -m benchmarks generate generate_beams5` measures the whole search.
    """
    blocks = scores.shape[-1] // BLOCK
    if blocks < 2 * count:
        return scores.topk(count)
    blocked = scores[..., : blocks * BLOCK].unflatten(-1, (blocks, BLOCK))
    chosen = blocked.amax(dim=-1).topk(count).indices[..., None]  # (..., count, 1)
    candidates = blocked.gather(-2, chosen.expand(*chosen.shape[:-1], BLOCK)).flatten(-2)
    indices = (chosen * BLOCK + torch.arange(BLOCK, device=scores.device)).flatten(-2)
    rest = torch.arange(blocks * BLOCK, scores.shape[-1], device=scores.device).expand(*scores.shape[:-1], -1)
    values, at = torch.cat([candidates, scores[..., blocks * BLOCK :]], dim=-1).topk(count)
    return values, torch.cat([indices, rest], dim=-1).gather(-1, at)


def _gather(indices: Tensor, tokens: Tensor, values: Tensor) -> Continuations:
    """The continuations at indices (b, C) of the flattened tokens and values (b, W, c)."""
    return indices // tokens.shape[2], tokens.flatten(1).gather(1, indices), values.flatten(1).gather(1, indices)


def draw(log_probs: Tensor, config: GenerationConfig, generator: torch.Generator | None) -> Tensor:
    """Sample one token per row, int64 (R,), with the temperature, top_k, top_p and min_p of the config.

    The argmax of log p + Gumbel noise is a sample from p. The noise is made on the generator's device, so that a seed
    gives the same samples on every device.

    Args:
        log_probs: float (R, V), up to a constant per row.
        generator: of the noise; None: torch's default.
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
    """Set all but the `count` most probable tokens of each row to -inf."""
    top = log_probs.topk(min(count, log_probs.shape[1]), dim=1)
    return torch.full_like(log_probs, -torch.inf).scatter(1, top.indices, top.values)


def keep_top_p(log_probs: Tensor, mass: float) -> Tensor:
    """Set all but the fewest most probable tokens of each row whose probabilities sum to `mass` to -inf."""
    ordered, order = log_probs.softmax(dim=1).sort(dim=1, descending=True, stable=True)
    before = ordered.cumsum(dim=1) - ordered
    beyond = before >= mass
    beyond[:, 0] = False
    return log_probs.masked_fill(torch.zeros_like(beyond).scatter(1, order, beyond), -torch.inf)


def keep_min_p(log_probs: Tensor, fraction: float) -> Tensor:
    """Set the tokens of each row less than `fraction` times as probable as its most probable one to -inf."""
    likeliest = log_probs.amax(dim=1, keepdim=True)
    return log_probs.masked_fill((log_probs - likeliest).exp() < fraction, -torch.inf)
