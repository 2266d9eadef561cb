"""One search, step by step: a decoder on the contract start / step / select until every sentence has ended.

start ─ step ─ scores ─ constraints ─ best or drawn ─┬─ eos: finished
          └──────────────── select ───────────────── ┴─ others: live
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from velm.decoders.base import Decoder, DecoderState
from velm.generation.candidates import Picked, best, best_by_need, draw, log_sum_exp
from velm.generation.config import GenerationConfig
from velm.generation.constraints import Constraints
from velm.generation.hypotheses import Finished, Live
from velm.generation.phrases import Phrases

__all__ = ["Search"]


@dataclass(frozen=True)
class Search:
    """What `generate` and `stream` have in common; the arguments are theirs.

    Groups of beams are sentences that lie next to each other: group g of sentence s is row s * groups + g.
    """

    decoder: Decoder
    config: GenerationConfig
    bos_id: int
    eos_id: int
    suppress: Sequence[int]
    generator: torch.Generator | None
    return_attention: bool
    device: torch.device
    constraints: Constraints = field(init=False)

    def __post_init__(self) -> None:
        constraints = Constraints(
            self.config,
            eos_id=self.eos_id,
            suppress=self.suppress,
            vocab_size=self.decoder.output_projection.out_features,
            limit=self.limit,
            device=self.device,
        )
        object.__setattr__(self, "constraints", constraints)

    @property
    def limit(self) -> int:
        """Most tokens that can be written, eos included."""
        longest = self.decoder.max_length
        return self.config.max_length if longest is None else min(self.config.max_length, longest)

    @property
    def groups(self) -> int:
        return self.config.num_beam_groups

    @property
    def beams(self) -> int:
        """Of a group."""
        return self.config.num_beams // self.groups

    @property
    def copies(self) -> int:
        """How many sentences are searched for each memory: samples or groups."""
        return self.groups if self.config.temperature is None else self.config.num_return

    def start(self, memory: Tensor, memory_mask: Tensor | None) -> DecoderState:
        """The decoder's state, `copies` neighbouring rows a memory."""
        state = self.decoder.start(memory, memory_mask)
        if self.copies == 1:
            return state
        return state.select(torch.arange(len(memory), device=self.device).repeat_interleave(self.copies))

    def run(self, state: DecoderState, sentences: int, finished: Finished) -> Iterator[Live]:
        """Search for `sentences` rows of the state; after each step, what its candidates are, best first."""
        live, done = Live.start(sentences, self.device), [False] * sentences
        word = torch.full((sentences,), self.bos_id, device=self.device)
        for _ in range(self.limit if sentences else 0):
            logits, state = self.decoder.step(word, state)
            going = ~torch.tensor(done, device=self.device)
            candidates, parents = self._continue(live, logits, going, state)
            ended, dead = self._ended(candidates, going)
            finished.add(candidates, ended, ended=True)
            done = [enough or lost for enough, lost in zip(finished.done(candidates), dead, strict=True)]
            yield candidates
            if all(done):
                return
            width = live.width
            live, rows, done = self._go_on(candidates, parents, done, width)
            if width > 1 or len(rows) != len(word):
                state = state.select(rows)
            word = live.words.flatten()
        unfinished = ~torch.tensor(done, dtype=torch.bool, device=self.device)
        finished.add(live, (live.totals > -torch.inf) & unfinished[:, None], ended=False)

    def _ended(self, candidates: Live, going: Tensor) -> tuple[Tensor, list[bool]]:
        """bool (b, C), which candidates end now, on the CPU: a step's one wait for the device; and who is lost."""
        possible = candidates.totals > -torch.inf
        ended = (candidates.words == self.eos_id) & possible & going[:, None]
        ended[:, self.beams :] = False
        ended, possible = torch.stack([ended, possible]).cpu()
        return ended, (~possible.any(dim=1)).tolist()

    def _continue(self, live: Live, logits: Tensor, going: Tensor, state: DecoderState) -> tuple[Live, Tensor]:
        """Candidates, best first, and which hypothesis each of them continues, int64 (b, C)."""
        scores = logits.to(torch.promote_types(logits.dtype, torch.float32))
        shape = live.totals.shape
        everything = log_sum_exp(scores).unflatten(0, shape)  # log p is a score less this: taken off those chosen only
        scores = self.constraints(scores, live.tokens.flatten(0, 1), live.states.flatten()).unflatten(0, shape)
        if self.config.temperature is not None:
            words = draw(scores[:, 0], self.config, self.generator)[:, None]
            parents, added = torch.zeros_like(words), scores[:, 0].gather(1, words)
        elif self.groups > 1:
            parents, words, added = self._diverse(live, scores, everything, going)
        else:
            parents, words, added = self._best(live.totals - everything, scores, live.states)
        added = added - everything.gather(1, parents)
        states = self.constraints.advance(live.states.gather(1, parents), words)
        looked = state.attention if self.return_attention else None
        looked = None if looked is None else looked.unflatten(0, shape)
        return live.extend(parents, words, added, states, looked), parents

    def _best(self, totals: Tensor, scores: Tensor, states: Tensor) -> Picked:
        # every hypothesis may end at once: with twice the beams, enough are left to go on
        count, rules = 2 * self.beams if self.config.num_beams > 1 else 1, self.constraints.rules
        if count > 1 and isinstance(rules, Phrases) and rules.requires:
            return best_by_need(totals, scores, count, rules, states)
        return best(totals, scores, count)

    def _diverse(self, live: Live, scores: Tensor, everything: Tensor, going: Tensor) -> Picked:
        """Group after group, a token costs `diversity_penalty` for each beam that went on with it (Hamming)."""
        assert self.config.diversity_penalty is not None
        price = scores.new_zeros(len(scores) // self.groups, scores.shape[2])
        found = []
        for group in range(self.groups):
            mine = slice(group, None, self.groups)
            totals = live.totals[mine] - everything[mine]
            parents, words, added = self._best(totals, scores[mine] - price[:, None], live.states[mine])
            added = added + price.gather(1, words)
            found.append((parents, words, added))
            columns = self._columns(words, live.width)
            counts = (totals.gather(1, parents) + added > -torch.inf) & (words != self.eos_id) & going[mine, None]
            cost = self.config.diversity_penalty * counts.gather(1, columns).to(price.dtype)
            price.scatter_add_(1, words.gather(1, columns), cost)
        parents, words, added = (torch.stack(each, dim=1).flatten(0, 1) for each in zip(*found, strict=True))
        return parents, words, added

    def _columns(self, words: Tensor, width: int) -> Tensor:
        """Which candidates go on, int64 (b, beams): the best that do not end."""
        columns = (words == self.eos_id).to(torch.int8).argsort(dim=1, stable=True)
        return columns[:, : min(self.beams, max(1, width * (self.constraints.vocab_size - 1)))]

    def _go_on(
        self, candidates: Live, parents: Tensor, done: list[bool], width: int
    ) -> tuple[Live, Tensor, list[bool]]:
        """The hypotheses that go on, the rows of the state that they continue, and which sentences are done.

        Sentences that are done leave once they are a quarter of the batch: leaving costs a copy of the memory.
        """
        stay = list(range(len(done)))
        over = [all(done[i : i + self.groups]) for i in range(0, len(done), self.groups)]
        if 4 * sum(over) >= len(over):
            stay = [row for row in stay if not over[row // self.groups]]
        if width == 1 == candidates.width and len(stay) == len(done):
            return candidates, torch.arange(len(stay), device=parents.device), done
        rows = torch.tensor(stay, dtype=torch.int64, device=parents.device)[:, None]
        columns = self._columns(candidates.words, width)[rows[:, 0]]
        continued = rows * width + parents[rows, columns]
        return candidates.take(stay, columns), continued.flatten(), [done[row] for row in stay]
