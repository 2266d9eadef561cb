"""Greedy and beam search with numpy, as `velm.generation` searches by default.

Shapes: b searches, W hypotheses each, t tokens so far, V vocabulary, C candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from velm.errors import PipelineError

__all__ = ["Cache", "Found", "SearchOptions", "search", "search_options"]


@dataclass(frozen=True)
class SearchOptions:
    """The options of writing without torch; of the same names and meanings as in `GenerationConfig`."""

    max_length: int
    num_beams: int = 1
    length_penalty: float = 1.0
    num_return: int = 1


def search_options(longest: int, vocab_size: int, **options: Any) -> SearchOptions:
    """The options of a search.

    Args:
        longest: default of max_length, most tokens of a caption, eos included.
        vocab_size: V.

    Raises:
        PipelineError: an option is unknown here, or out of range.
    """
    known = SearchOptions.__dataclass_fields__
    if unknown := sorted(options.keys() - known):
        raise PipelineError(
            f"Unknown {unknown}. Options of writing without torch: {', '.join(known)}; those of the checkpoint, with "
            f"torch, are more: velm.load(CHECKPOINT).caption(...)."
        )
    chosen = SearchOptions(**{"max_length": longest, **options})
    for name in ("max_length", "num_beams", "num_return"):
        value = getattr(chosen, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise PipelineError(f"{name} is {value!r}; it is a whole number of at least 1.")
    if chosen.num_return > chosen.num_beams:
        raise PipelineError(f"num_return {chosen.num_return} is more than num_beams {chosen.num_beams}.")
    if chosen.num_beams > vocab_size:
        raise PipelineError(f"num_beams {chosen.num_beams} is more than the vocabulary has tokens, {vocab_size}.")
    return chosen


@dataclass(frozen=True)
class Cache:
    """The tensors of a decoder's state, rows first.

    Attributes:
        memory: those of the memory.
        past: those of the tokens so far.
        owners: int64 (R,), the memory of each row.
    """

    memory: dict[str, np.ndarray]
    past: dict[str, np.ndarray]
    owners: np.ndarray

    def select(self, rows: np.ndarray) -> Cache:
        """The state of the rows listed; the memory is not copied while rows keep their own."""
        owners, memory = self.owners[rows], self.memory
        if not np.array_equal(owners, self.owners):
            memory = {name: tensor[rows] for name, tensor in memory.items()}
        return Cache(memory, {name: tensor[rows] for name, tensor in self.past.items()}, owners)


Step = Callable[[np.ndarray, Cache], tuple[np.ndarray, Cache]]
"""A token int64 (R,) for each row of a state, to logits float32 (R, V) and the new state."""


class Found(NamedTuple):
    """A text: its tokens, the sum of their log p, that over length ** length_penalty, and whether eos ended it."""

    tokens: list[int]
    log_prob: float
    score: float
    ended: bool


def search(
    step: Step, cache: Cache, *, options: SearchOptions, limit: int, start_id: int, eos_id: int, suppress: Sequence[int]
) -> list[list[Found]]:
    """The best `num_return` texts of each row of `cache`, best first; fewer where fewer were found.

    Args:
        limit: most tokens of a text.
        suppress: tokens that are never written.
    """
    beams, count = options.num_beams, len(cache.owners)
    found: list[list[Found]] = [[] for _ in range(count)]
    left, token = np.arange(count), np.full(count, start_id, dtype=np.int64)
    totals, texts = np.zeros((count, 1), dtype=np.float32), np.zeros((count, 1, 0), dtype=np.int64)
    done = np.zeros(count, dtype=bool)
    for _ in range(limit if count else 0):
        logits, cache = step(token, cache)
        parents, tokens, totals = _candidates(logits, totals, 2 * beams if beams > 1 else 1, suppress)
        texts = np.concatenate([np.take_along_axis(texts, parents[:, :, None], axis=1), tokens[:, :, None]], axis=2)
        possible = totals > -np.inf
        ended = (tokens == eos_id) & possible & ~done[:, None]
        ended[:, beams:] = False
        _add(found, left, texts, totals, ended, options.length_penalty, True)
        done = np.array([len(found[row]) >= beams for row in left]) | ~possible.any(axis=1)
        if done.all():
            break
        width = len(token) // len(left)
        rows = np.arange(len(left)) if 4 * done.sum() < len(done) else np.flatnonzero(~done)
        going = (tokens == eos_id).argsort(axis=1, kind="stable")
        columns = going[rows, : min(beams, max(1, width * (logits.shape[1] - 1)))]
        at = (rows[:, None], columns)
        source = rows[:, None] * width + parents[at]
        totals, texts, done, left, token = totals[at], texts[at], done[rows], left[rows], tokens[at].ravel()
        if not np.array_equal(source.ravel(), np.arange(len(cache.owners))):
            cache = cache.select(source.ravel())
    else:
        _add(found, left, texts, totals, (totals > -np.inf) & ~done[:, None], options.length_penalty, False)
    ordered = [sorted(each, key=lambda text: (text.ended, text.score), reverse=True) for each in found]
    return [each[: options.num_return] for each in ordered]


def _candidates(
    logits: np.ndarray, totals: np.ndarray, count: int, suppress: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The best `count` continuations of each search, best first: parents, tokens int64 (b, C), totals (b, C)."""
    scores = logits.astype(np.float32)
    highest = scores.max(axis=1)
    normalizer = (highest + np.log(np.exp(scores - highest[:, None]).sum(axis=1))).reshape(totals.shape)
    scores[:, suppress] = -np.inf
    scores = scores.reshape(*totals.shape, -1)
    if count == 1:
        tokens = scores[:, 0].argmax(axis=1)[:, None]
        return np.zeros_like(tokens), tokens, totals + np.take_along_axis(scores[:, 0], tokens, axis=1) - normalizer
    tokens = _largest(scores, min(count, scores.shape[2]))  # no other token of a hypothesis can be chosen
    added = np.take_along_axis(scores, tokens, axis=2) + (totals - normalizer)[:, :, None]
    sums, flat = added.reshape(len(added), -1), tokens.reshape(len(tokens), -1)
    best = _largest(sums, min(count, sums.shape[1]))
    return best // tokens.shape[2], np.take_along_axis(flat, best, axis=1), np.take_along_axis(sums, best, axis=1)


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """Indices of the `count` largest of the last axis, largest first."""
    size = values.shape[-1]
    top = np.argpartition(values, size - count, axis=-1)[..., size - count :]
    order = np.take_along_axis(values, top, axis=-1).argsort(axis=-1, kind="stable")[..., ::-1]
    return np.take_along_axis(top, order, axis=-1)


def _add(
    found: list[list[Found]], left: np.ndarray, texts: np.ndarray, totals: np.ndarray, chosen: np.ndarray,
    penalty: float, ended: bool,
) -> None:  # fmt: skip
    """Add the hypotheses that bool (b, C) selects to those of their searches."""
    for row, column in np.argwhere(chosen):
        total = float(totals[row, column])
        found[left[row]].append(Found(texts[row, column].tolist(), total, total / texts.shape[2] ** penalty, ended))
