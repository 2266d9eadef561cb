"""The hypotheses of a search: those that are extended at each step, and those that are finished.

Shapes: b searches, W hypotheses each, t tokens so far, N memory positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, zip_longest

import torch
from torch import Tensor


@dataclass(frozen=True)
class LiveHypotheses:
    """Hypotheses to extend: W for each of b searches.

    Attributes:
        searches: indices of the b searches, out of all that were started.
        tokens: int64 (b, W, t).
        log_probs: float (b, W, t), the decoder's log p of each token, before the rules.
        totals: float (b, W), sum of the log_probs; -inf where the rules forbid the tokens.
        states: int64 (b, W), states of `Constraints`.
        attention: float (b, W, t, N), the attention of each token; None unless requested.
    """

    searches: list[int]
    tokens: Tensor
    log_probs: Tensor
    totals: Tensor
    states: Tensor
    attention: Tensor | None

    @classmethod
    def start(cls, searches: int, device: torch.device) -> LiveHypotheses:
        """One empty hypothesis per search."""
        empty = torch.zeros(searches, 1, 0, dtype=torch.int64, device=device)
        zeros = torch.zeros(searches, 1, device=device)
        return cls(list(range(searches)), empty, empty.float(), zeros, zeros.long(), None)

    @property
    def width(self) -> int:
        """W."""
        return self.tokens.shape[1]

    @property
    def last_tokens(self) -> Tensor:
        """int64 (b, W)."""
        return self.tokens[:, :, -1]

    def extend(
        self, parents: Tensor, tokens: Tensor, log_probs: Tensor, states: Tensor, attention: Tensor | None
    ) -> LiveHypotheses:
        """C continuations of each search: hypothesis parents (b, C) with tokens (b, C) appended.

        Args:
            parents: int64 (b, C).
            tokens: int64 (b, C).
            log_probs: float (b, C), of the tokens.
            states: int64 (b, C), after the tokens.
            attention: float (b, W, N), of this step.
        """
        single = self.width == 1 and tokens.shape[1] == 1  # nothing is reordered
        rows = torch.arange(len(parents), device=parents.device)[:, None]

        def of_parents(tensor: Tensor) -> Tensor:
            return tensor if single else tensor[rows, parents]

        all_tokens = torch.cat([of_parents(self.tokens), tokens[:, :, None]], dim=2)
        all_log_probs = torch.cat([of_parents(self.log_probs), log_probs[:, :, None]], dim=2)
        if attention is not None:
            attention = of_parents(attention)[:, :, None]
            if self.attention is not None:
                attention = torch.cat([of_parents(self.attention), attention], dim=2)
        totals = of_parents(self.totals) + log_probs
        return LiveHypotheses(self.searches, all_tokens, all_log_probs, totals, states, attention)

    def take(self, rows: list[int], columns: Tensor) -> LiveHypotheses:
        """The hypotheses columns (k, W') of the searches `rows`."""
        if len(rows) == len(self.searches) and self.width == columns.shape[1] == 1:
            return self
        at = (torch.tensor(rows, dtype=torch.int64, device=columns.device)[:, None], columns)
        attention = None if self.attention is None else self.attention[at]
        searches = [self.searches[row] for row in rows]
        return LiveHypotheses(
            searches, self.tokens[at], self.log_probs[at], self.totals[at], self.states[at], attention
        )


@dataclass(frozen=True)
class Hypothesis:
    """A finished text: tokens int64 (S,), log_probs float (S,), score, attention float (S, N) if requested."""

    tokens: Tensor
    log_probs: Tensor
    score: float
    ended: bool
    attention: Tensor | None

    @property
    def rank(self) -> tuple[bool, float]:
        """Texts with eos come before those cut at max_length, whatever their scores."""
        return self.ended, self.score


class FinishedHypotheses:
    """Finished hypotheses by search; a search is done when it has `needed` of them."""

    def __init__(self, searches: int, needed: int, length_penalty: float) -> None:
        self.needed, self.length_penalty = needed, length_penalty
        self.by_search: list[list[Hypothesis]] = [[] for _ in range(searches)]

    def add(self, live: LiveHypotheses, chosen: Tensor, *, ended: bool) -> None:
        """Add the hypotheses of `live` selected by bool (b, C)."""
        rows, columns = chosen.nonzero(as_tuple=True)
        if len(rows) == 0:
            return
        at = (rows, columns)
        scores = (live.totals[at] / live.tokens.shape[2] ** self.length_penalty).tolist()
        tokens, log_probs = live.tokens[at].unbind(), live.log_probs[at].unbind()
        attention = [None] * len(rows) if live.attention is None else live.attention[at].unbind()
        for i, row in enumerate(rows.tolist()):
            hypothesis = Hypothesis(tokens[i], log_probs[i], scores[i], ended, attention[i])
            self.by_search[live.searches[row]].append(hypothesis)

    def done(self, live: LiveHypotheses) -> list[bool]:
        """Which of the live searches have enough."""
        return [len(self.by_search[search]) >= self.needed for search in live.searches]

    def best(self, count: int, groups: int = 1) -> list[list[Hypothesis]]:
        """The best `count` of each search, best first; fewer if fewer were found.

        With `groups` > 1, adjacent searches are merged: the best of each group, then the second best of each, and so
        on, without duplicates.
        """
        ordered = [sorted(found, key=lambda h: h.rank, reverse=True) for found in self.by_search]
        if groups == 1:
            return [found[:count] for found in ordered]
        merged = []
        for start in range(0, len(ordered), groups):
            turns = chain.from_iterable(zip_longest(*ordered[start : start + groups]))
            distinct = {tuple(found.tokens.tolist()): found for found in turns if found is not None}
            chosen = list(distinct.values())[:count]
            merged.append(sorted(chosen, key=lambda h: h.rank, reverse=True))
        return merged
