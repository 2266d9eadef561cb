"""The search loop: steps a decoder (start / step / select) until every text has ended.

start ─ step ─ scores ─ constraints ─ best or drawn ─┬─ eos: finished
          └──────────────── select ───────────────── ┴─ others: live
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from velm.decoders.base import Decoder, DecoderState
from velm.generation.config import GenerationConfig
from velm.generation.constraints import Constraints
from velm.generation.hypotheses import FinishedHypotheses, LiveHypotheses
from velm.generation.phrases import Phrases
from velm.generation.scores import Continuations, best, best_by_need, draw, log_sum_exp


@dataclass(frozen=True)
class Search:
    """The loop that `generate` and `stream` share.

    A batch holds several searches per memory: one per sample, or one per group of beams. They are adjacent: group g of
    memory m is search m * groups + g.
    """

    decoder: Decoder
    constraints: Constraints
    bos_id: int
    device: torch.device
    generator: torch.Generator | None = None
    return_attention: bool = False

    @property
    def config(self) -> GenerationConfig:
        return self.constraints.config

    @property
    def groups(self) -> int:
        return self.config.num_beam_groups

    @property
    def beams(self) -> int:
        """Beams per group."""
        return self.config.num_beams // self.groups

    @property
    def copies(self) -> int:
        """Searches per memory: samples or groups."""
        return self.groups if self.config.temperature is None else self.config.num_return

    def start(self, memory: Tensor, memory_mask: Tensor | None) -> DecoderState:
        """The decoder's state with `copies` adjacent rows per memory."""
        state = self.decoder.start(memory, memory_mask)
        if self.copies == 1:
            return state
        return state.select(torch.arange(len(memory), device=self.device).repeat_interleave(self.copies))

    def run(self, state: DecoderState, searches: int, finished: FinishedHypotheses) -> Iterator[LiveHypotheses]:
        """Run `searches` rows of the state; yield the candidates of each step, best first."""
        live, done = LiveHypotheses.start(searches, self.device), [False] * searches
        token = torch.full((searches,), self.bos_id, device=self.device)
        for _ in range(self.constraints.limit if searches else 0):
            logits, state = self.decoder.step(token, state)
            active = ~torch.tensor(done, device=self.device)
            candidates, parents = self._candidates(live, logits, active, state)
            ended, dead = self._ended(candidates, active)
            finished.add(candidates, ended, ended=True)
            done = [enough or failed for enough, failed in zip(finished.done(candidates), dead, strict=True)]
            yield candidates
            if all(done):
                return
            width = live.width
            live, rows, done = self._continue(candidates, parents, done, width)
            if width > 1 or len(rows) != len(token):
                state = state.select(rows)
            token = live.last_tokens.flatten()
        unfinished = ~torch.tensor(done, dtype=torch.bool, device=self.device)
        finished.add(live, (live.totals > -torch.inf) & unfinished[:, None], ended=False)

    def rollout(self, state: DecoderState, searches: int) -> LiveHypotheses:
        """The operations of `run` of samples, all as long as allowed, eos or not: no value is read, so that the tensors
        may be fake.
        """
        live = LiveHypotheses.start(searches, self.device)
        token = torch.full((searches,), self.bos_id, device=self.device)
        active = torch.ones(searches, dtype=torch.bool, device=self.device)
        for _ in range(self.constraints.limit):
            logits, state = self.decoder.step(token, state)
            live, _ = self._candidates(live, logits, active, state)
            token = live.last_tokens.flatten()
        return live

    def _ended(self, candidates: LiveHypotheses, active: Tensor) -> tuple[Tensor, list[bool]]:
        """Which candidates end now, bool (b, C) on the CPU, and which searches have no possible candidate.

        The only synchronisation with the device in a step.
        """
        possible = candidates.totals > -torch.inf
        ended = (candidates.last_tokens == self.constraints.eos_id) & possible & active[:, None]
        ended[:, self.beams :] = False
        ended, possible = torch.stack([ended, possible]).cpu()
        return ended, (~possible.any(dim=1)).tolist()

    def _candidates(
        self, live: LiveHypotheses, logits: Tensor, active: Tensor, state: DecoderState
    ) -> tuple[LiveHypotheses, Tensor]:
        """The continuations, best first, and the hypothesis that each extends, int64 (b, C)."""
        scores = logits.to(torch.promote_types(logits.dtype, torch.float32))
        shape = live.totals.shape
        normalizer = log_sum_exp(scores).unflatten(0, shape)  # log p = score - normalizer, for chosen tokens only
        scores = self.constraints(scores, live.tokens.flatten(0, 1), live.states.flatten()).unflatten(0, shape)
        if self.config.temperature is not None:
            tokens = draw(scores[:, 0], self.config, self.generator)[:, None]
            parents, added = torch.zeros_like(tokens), scores[:, 0].gather(1, tokens)
        elif self.groups > 1:
            parents, tokens, added = self._diverse(live, scores, normalizer, active)
        else:
            parents, tokens, added = self._best(live.totals - normalizer, scores, live.states)
        added = added - normalizer.gather(1, parents)
        states = self.constraints.advance(live.states.gather(1, parents), tokens)
        attention = state.attention if self.return_attention else None
        attention = None if attention is None else attention.unflatten(0, shape)
        return live.extend(parents, tokens, added, states, attention), parents

    def _best(self, totals: Tensor, scores: Tensor, states: Tensor) -> Continuations:
        # all hypotheses may end at once: twice as many candidates as beams leave enough to continue
        count, rules = 2 * self.beams if self.config.num_beams > 1 else 1, self.constraints.rules
        if count > 1 and isinstance(rules, Phrases) and rules.requires:
            return best_by_need(totals, scores, count, rules, states)
        return best(totals, scores, count)

    def _diverse(self, live: LiveHypotheses, scores: Tensor, normalizer: Tensor, active: Tensor) -> Continuations:
        """Group by group, a token costs `diversity_penalty` per beam of earlier groups that continues with it."""
        assert self.config.diversity_penalty is not None
        penalty = scores.new_zeros(len(scores) // self.groups, scores.shape[2])
        chosen = []
        for group in range(self.groups):
            rows = slice(group, None, self.groups)
            totals = live.totals[rows] - normalizer[rows]
            parents, tokens, added = self._best(totals, scores[rows] - penalty[:, None], live.states[rows])
            added = added + penalty.gather(1, tokens)
            chosen.append((parents, tokens, added))
            columns = self._columns(tokens, live.width)
            possible = totals.gather(1, parents) + added > -torch.inf
            counts = possible & (tokens != self.constraints.eos_id) & active[rows, None]
            cost = self.config.diversity_penalty * counts.gather(1, columns).to(penalty.dtype)
            penalty.scatter_add_(1, tokens.gather(1, columns), cost)
        parents, tokens, added = (torch.stack(each, dim=1).flatten(0, 1) for each in zip(*chosen, strict=True))
        return parents, tokens, added

    def _columns(self, tokens: Tensor, width: int) -> Tensor:
        """The candidates that continue, int64 (b, beams): the best without eos."""
        columns = (tokens == self.constraints.eos_id).to(torch.int8).argsort(dim=1, stable=True)
        return columns[:, : min(self.beams, max(1, width * (self.constraints.vocab_size - 1)))]

    def _continue(
        self, candidates: LiveHypotheses, parents: Tensor, done: list[bool], width: int
    ) -> tuple[LiveHypotheses, Tensor, list[bool]]:
        """The hypotheses that continue, the rows of the state that they extend, and which searches are done.

        Memories whose searches are all done are removed once they are a quarter of the batch: removing copies the
        state of the others.
        """
        rows_left = list(range(len(done)))
        over = [all(done[i : i + self.groups]) for i in range(0, len(done), self.groups)]
        if 4 * sum(over) >= len(over):
            rows_left = [row for row in rows_left if not over[row // self.groups]]
        if width == 1 == candidates.width and len(rows_left) == len(done):
            return candidates, torch.arange(len(rows_left), device=parents.device), done
        rows = torch.tensor(rows_left, dtype=torch.int64, device=parents.device)[:, None]
        columns = self._columns(candidates.last_tokens, width)[rows[:, 0]]
        continued = rows * width + parents[rows, columns]
        return candidates.take(rows_left, columns), continued.flatten(), [done[row] for row in rows_left]
