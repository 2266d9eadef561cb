"""The book-keeping of a search: hypotheses that go on, and hypotheses that have ended."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Live:
    """Hypotheses that go on: W for each of b sentences.

    Attributes:
        sentences: int64 (b,), which sentences these are.
        tokens: int64 (b, W, t), written so far.
        totals: float (b, W), sum of log p.
        attention: float (b, W, t, N), where each token looked; None if not asked for.
    """

    sentences: Tensor
    tokens: Tensor
    totals: Tensor
    attention: Tensor | None

    @classmethod
    def start(cls, sentences: int, device: torch.device) -> Live:
        """One empty hypothesis for each sentence."""
        nothing = torch.zeros(sentences, 1, 0, dtype=torch.int64, device=device)
        return cls(torch.arange(sentences, device=device), nothing, torch.zeros(sentences, 1, device=device), None)

    @property
    def width(self) -> int:
        return self.tokens.shape[1]

    @property
    def words(self) -> Tensor:
        """The token written last, int64 (b, W)."""
        return self.tokens[:, :, -1]

    def extend(self, parents: Tensor, words: Tensor, totals: Tensor, looked: Tensor | None) -> Live:
        """C continuations of each sentence: hypothesis parents (b, C) with words (b, C) appended.

        Args:
            parents, words: int64 (b, C).
            totals: float (b, C).
            looked: float (b, W, N), the attention of this step.
        """
        rows = torch.arange(len(parents), device=parents.device)[:, None]
        tokens = torch.cat([self.tokens[rows, parents], words[:, :, None]], dim=2)
        attention = None
        if looked is not None:
            now = looked[rows, parents][:, :, None]
            attention = now if self.attention is None else torch.cat([self.attention[rows, parents], now], dim=2)
        return Live(self.sentences, tokens, totals, attention)

    def take(self, rows: Tensor, columns: Tensor) -> Live:
        """The sentences rows (k,), of each the hypotheses columns (k, W')."""
        at = (rows[:, None], columns)
        attention = None if self.attention is None else self.attention[at]
        return Live(self.sentences[rows], self.tokens[at], self.totals[at], attention)


@dataclass(frozen=True)
class Hypothesis:
    """A sentence as written: tokens int64 (S,), its score, attention float (S, N) if asked for."""

    tokens: Tensor
    score: float
    ended: bool
    attention: Tensor | None

    @property
    def rank(self) -> tuple[bool, float]:
        """Sentences that ended come before those cut at max_length, whatever their scores."""
        return self.ended, self.score


class Finished:
    """Hypotheses that are over, by sentence; a sentence is done when it has `wanted` of them."""

    def __init__(self, sentences: int, wanted: int, length_penalty: float) -> None:
        self.wanted, self.length_penalty = wanted, length_penalty
        self.by_sentence: list[list[Hypothesis]] = [[] for _ in range(sentences)]

    def add(self, live: Live, chosen: Tensor, *, ended: bool) -> None:
        """Put away the hypotheses of `live` chosen by bool (b, C)."""
        rows, columns = chosen.nonzero(as_tuple=True)
        if len(rows) == 0:
            return
        scores = (live.totals[rows, columns] / live.tokens.shape[2] ** self.length_penalty).tolist()
        sentences = live.sentences[rows].tolist()
        tokens = live.tokens[rows, columns].unbind()
        attention = [None] * len(rows) if live.attention is None else live.attention[rows, columns].unbind()
        for sentence, *hypothesis in zip(sentences, tokens, scores, attention, strict=True):
            written, score, looked = hypothesis
            self.by_sentence[sentence].append(Hypothesis(written, score, ended, looked))

    def done(self, live: Live) -> Tensor:
        """bool (b,), which of the live sentences have enough, or nothing left that could go on."""
        done = [len(self.by_sentence[sentence]) >= self.wanted for sentence in live.sentences.tolist()]
        return torch.tensor(done, device=live.totals.device) | (live.totals == -torch.inf).all(dim=1)

    def best(self, count: int) -> list[list[Hypothesis]]:
        """The best `count` of each sentence, best first; fewer where fewer were found."""
        return [sorted(found, key=lambda h: h.rank, reverse=True)[:count] for found in self.by_sentence]
