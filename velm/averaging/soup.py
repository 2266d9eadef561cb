"""Greedy model soups (Wortsman et al. 2022, arXiv 2203.05482, recipe 1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from velm.averaging.average import average, uniform
from velm.averaging.compatible import require_same_model
from velm.checkpoint import Checkpoint

__all__ = ["Ingredient", "greedy_soup"]


@dataclass(frozen=True)
class Ingredient:
    """A checkpoint that was tried.

    Attributes:
        checkpoint: the one tried.
        own: its own score.
        soup: the score of the soup with it.
        used: whether it stayed in the soup.
    """

    checkpoint: Checkpoint
    own: float
    soup: float
    used: bool


def greedy_soup(checkpoints: Sequence[Checkpoint], score: Callable[[Checkpoint], float]) -> list[Ingredient]:
    """Try the checkpoints from the best to the worst; each stays if the mean of those that stayed is not worse with it.

    Args:
        checkpoints: two or more of one model.
        score: on held-out data; higher is better.

    Returns:
        the checkpoints in the order in which they were tried. The soup is the mean of those that are `used`; its score
        is at least that of the best checkpoint.

    Raises:
        CheckpointError: they are not of one model.
    """
    require_same_model(checkpoints)
    scored = sorted(((score(each), each) for each in checkpoints), key=lambda pair: -pair[0])
    best, first = scored[0]
    soup, tried = [first], [Ingredient(first, best, best, used=True)]
    for own, each in scored[1:]:
        candidate = [*soup, each]
        value = score(average(candidate, uniform(len(candidate))))
        used = value >= best
        tried.append(Ingredient(each, own, value, used))
        if used:
            soup, best = candidate, value
    return tried
