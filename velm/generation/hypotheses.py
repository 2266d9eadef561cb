"""The book-keeping of a search: hypotheses that go on, and hypotheses that have ended."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, zip_longest

import torch
from torch import Tensor


@dataclass(frozen=True)
class Live:
    """Hypotheses that go on: W for each of b sentences.

    Attributes:
        sentences: which sentences these are, b numbers.
        tokens: int64 (b, W, t), written so far.
        log_probs: float (b, W, t), the decoder's own log p of each token.
        totals: float (b, W), their sum; -inf where what is written may not be.
        states: int64 (b, W), what the rules remember of each.
        attention: float (b, W, t, N), where each token looked; None if not asked for.
    """

    sentences: list[int]
    tokens: Tensor
    log_probs: Tensor
    totals: Tensor
    states: Tensor
    attention: Tensor | None

    @classmethod
    def start(cls, sentences: int, device: torch.device) -> Live:
        """One empty hypothesis for each sentence."""
        nothing = torch.zeros(sentences, 1, 0, dtype=torch.int64, device=device)
        zeros = torch.zeros(sentences, 1, device=device)
        return cls(list(range(sentences)), nothing, nothing.float(), zeros, zeros.long(), None)

    @property
    def width(self) -> int:
        return self.tokens.shape[1]

    @property
    def words(self) -> Tensor:
        """The token written last, int64 (b, W)."""
        return self.tokens[:, :, -1]

    def extend(self, parents: Tensor, words: Tensor, log_probs: Tensor, states: Tensor, looked: Tensor | None) -> Live:
        """C continuations of each sentence: hypothesis parents (b, C) with words (b, C) appended.

        Args:
            parents, words: int64 (b, C).
            log_probs: float (b, C), of the words.
            states: int64 (b, C), with the words.
            looked: float (b, W, N), the attention of this step.
        """
        alone = self.width == 1 and words.shape[1] == 1  # nothing is reordered
        rows = torch.arange(len(parents), device=parents.device)[:, None]

        def of_parents(tensor: Tensor) -> Tensor:
            return tensor if alone else tensor[rows, parents]

        tokens = torch.cat([of_parents(self.tokens), words[:, :, None]], dim=2)
        each = torch.cat([of_parents(self.log_probs), log_probs[:, :, None]], dim=2)
        attention = None
        if looked is not None:
            now = of_parents(looked)[:, :, None]
            attention = now if self.attention is None else torch.cat([of_parents(self.attention), now], dim=2)
        return Live(self.sentences, tokens, each, of_parents(self.totals) + log_probs, states, attention)

    def take(self, rows: list[int], columns: Tensor) -> Live:
        """The sentences `rows`, of each the hypotheses columns (k, W')."""
        if len(rows) == len(self.sentences) and self.width == columns.shape[1] == 1:
            return self
        at = (torch.tensor(rows, dtype=torch.int64, device=columns.device)[:, None], columns)
        attention = None if self.attention is None else self.attention[at]
        sentences = [self.sentences[row] for row in rows]
        return Live(sentences, self.tokens[at], self.log_probs[at], self.totals[at], self.states[at], attention)


@dataclass(frozen=True)
class Hypothesis:
    """A sentence as written: tokens int64 (S,), log_probs float (S,), score, attention float (S, N) if asked for."""

    tokens: Tensor
    log_probs: Tensor
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
        tokens, log_probs = live.tokens[rows, columns].unbind(), live.log_probs[rows, columns].unbind()
        attention = [None] * len(rows) if live.attention is None else live.attention[rows, columns].unbind()
        for row, *found, looked in zip(rows.tolist(), tokens, log_probs, scores, attention, strict=True):
            written, each, score = found
            self.by_sentence[live.sentences[row]].append(Hypothesis(written, each, score, ended, looked))

    def done(self, live: Live) -> list[bool]:
        """Which of the live sentences have enough."""
        return [len(self.by_sentence[sentence]) >= self.wanted for sentence in live.sentences]

    def best(self, count: int, groups: int = 1) -> list[list[Hypothesis]]:
        """The best `count` of each sentence, best first; fewer where fewer were found.

        Of several neighbouring groups: the best of each, then the second best of each and so on, nothing twice.
        """
        ordered = [sorted(found, key=lambda h: h.rank, reverse=True) for found in self.by_sentence]
        if groups == 1:
            return [found[:count] for found in ordered]
        merged = []
        for start in range(0, len(ordered), groups):
            turns = chain.from_iterable(zip_longest(*ordered[start : start + groups]))
            distinct = {tuple(found.tokens.tolist()): found for found in turns if found is not None}
            chosen = list(distinct.values())[:count]
            merged.append(sorted(chosen, key=lambda h: h.rank, reverse=True))
        return merged
