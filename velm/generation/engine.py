"""Writing: steps any decoder on the contract start / step / select, until every sentence has ended.

start ─ step ─ log p ─ constraints ─ best or drawn ─┬─ eos: finished
          └────────────── select ────────────────── ┴─ others: live
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from velm.decoders.base import Decoder, DecoderState
from velm.generation.candidates import best, draw
from velm.generation.config import GenerationConfig
from velm.generation.constraints import Constraints
from velm.generation.hypotheses import Finished, Hypothesis, Live


@dataclass(frozen=True)
class Generated:
    """R sentences for each of B memories, best first (samples: as drawn).

    Attributes:
        tokens: int64 (B, R, S), without bos, with eos unless cut at max_length, padded at the end.
        scores: float (B, R), sum of the decoder's own log p over length ** length_penalty; -inf beside a
            sentence that could not be found and is all padding.
        attention: float (B, R, S, N), where the decoder looked to write each token, 0 on padding; None
            unless asked for and known.
    """

    tokens: Tensor
    scores: Tensor
    attention: Tensor | None = None


@torch.no_grad()
def generate(
    decoder: Decoder,
    memory: Tensor,
    memory_mask: Tensor | None = None,
    *,
    bos_id: int,
    eos_id: int,
    pad_id: int,
    config: GenerationConfig | None = None,
    suppress: Sequence[int] = (),
    generator: torch.Generator | None = None,
    return_attention: bool = False,
) -> Generated:
    """Write sentences for B memories: greedy, by beam search or by sampling, as configured.

    Beam search keeps `num_beams` hypotheses alive; of the best continuations those that end are put away, and
    a sentence is done when `num_beams` have (as in fairseq, Ott et al. 2019). One beam is greedy search. A
    sentence does not depend on the others in the batch, unless it is drawn: then the generator's numbers are
    dealt out along the batch. Never longer than `decoder.max_length`.

    Args:
        decoder: in whatever mode; it writes in eval mode and is put back.
        memory: float (B, N, memory_dim).
        memory_mask: bool (B, N); None when there is content everywhere.
        bos_id: the token that a sentence begins with.
        eos_id: the token that ends it.
        pad_id: what fills the rest.
        config: None is greedy.
        suppress: token ids never to write, such as pad, bos and unk.
        generator: for samples that can be had again.
        return_attention: collect where the decoder looked.
    """
    config = GenerationConfig() if config is None else config
    samples = config.num_return if config.temperature is not None else 1
    search = _Search(decoder, config, bos_id, eos_id, suppress, generator, return_attention)
    with evaluating(decoder):
        state = decoder.start(memory, memory_mask)
        if samples > 1:  # each sample is a sentence of its own
            state = state.select(torch.arange(len(memory), device=memory.device).repeat_interleave(samples))
        finished = search.run(state, len(memory) * samples, memory.device)
    found = finished.best(config.num_return)
    if samples > 1:
        found = [[one for one, *_ in found[i : i + samples]] for i in range(0, len(found), samples)]
    return _assemble(found, config.num_return, pad_id, memory)


@dataclass(frozen=True)
class _Search:
    """One search; its arguments are those of `generate`."""

    decoder: Decoder
    config: GenerationConfig
    bos_id: int
    eos_id: int
    suppress: Sequence[int]
    generator: torch.Generator | None
    return_attention: bool

    def run(self, state: DecoderState, sentences: int, device: torch.device) -> Finished:
        """Search from the start, for `sentences` rows of the state."""
        vocab_size = self.decoder.output_projection.out_features
        constraints = Constraints(
            self.config, eos_id=self.eos_id, suppress=self.suppress, vocab_size=vocab_size, device=device
        )
        finished = Finished(sentences, self.config.num_beams, self.config.length_penalty)
        live, done = Live.start(sentences, device), torch.zeros(sentences, dtype=torch.bool, device=device)
        word = torch.full((sentences,), self.bos_id, device=device)
        for _ in range(self._limit() if sentences else 0):
            logits, state = self.decoder.step(word, state)
            candidates, parents = self._continue(live, logits, constraints, state)
            ended = (candidates.words == self.eos_id) & (candidates.totals > -torch.inf) & ~done[:, None]
            ended[:, self.config.num_beams :] = False
            finished.add(candidates, ended, ended=True)
            done = finished.done(candidates)
            if bool(done.all()):
                break
            width = live.width
            live, rows, done = self._go_on(candidates, parents, done, width)
            if width > 1 or len(rows) != len(word):
                state = state.select(rows)
            word = live.words.flatten()
        finished.add(live, (live.totals > -torch.inf) & ~done[:, None], ended=False)
        return finished

    def _limit(self) -> int:
        longest = self.decoder.max_length
        return self.config.max_length if longest is None else min(self.config.max_length, longest)

    def _continue(
        self, live: Live, logits: Tensor, constraints: Constraints, state: DecoderState
    ) -> tuple[Live, Tensor]:
        """Candidates, best first, and which hypothesis each of them continues, int64 (b, C)."""
        logits = logits if logits.dtype == torch.float64 else logits.float()
        log_probs = constraints(logits.log_softmax(dim=1), live.tokens.flatten(0, 1))
        totals = live.totals[:, :, None] + log_probs.unflatten(0, live.totals.shape)
        if self.config.temperature is None:
            # every hypothesis may end at once: with twice the beams, enough are left to go on
            parents, words = best(totals, 2 * self.config.num_beams if self.config.num_beams > 1 else 1)
        else:
            words = draw(log_probs, self.config, self.generator)[:, None]
            parents = torch.zeros_like(words)
        rows = torch.arange(len(words), device=words.device)[:, None]
        looked = state.attention if self.return_attention else None
        looked = None if looked is None else looked.unflatten(0, live.totals.shape)
        return live.extend(parents, words, totals[rows, parents, words], looked), parents

    def _go_on(self, candidates: Live, parents: Tensor, done: Tensor, width: int) -> tuple[Live, Tensor, Tensor]:
        """The hypotheses that go on, the rows of the state that they continue, and which sentences are done.

        Sentences that are done leave once they are a quarter of the batch: leaving costs a copy of the memory.
        """
        vocab_size = self.decoder.output_projection.out_features
        ends = candidates.words == self.eos_id
        columns = ends.to(torch.int8).argsort(dim=1, stable=True)  # those that go on, best first
        columns = columns[:, : min(self.config.num_beams, max(1, width * (vocab_size - 1)))]
        stay = torch.arange(len(done), device=done.device)
        if 4 * int(done.sum()) >= len(done):
            stay = stay[~done]
        columns = columns[stay]
        rows = stay[:, None] * width + parents[stay[:, None], columns]
        return candidates.take(stay, columns), rows.flatten(), done[stay]


@contextmanager
def evaluating(decoder: Decoder) -> Iterator[None]:
    """Eval mode, and afterwards each module back in its own."""
    training = [module for module in decoder.modules() if module.training]
    decoder.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _assemble(found: list[list[Hypothesis]], count: int, pad_id: int, memory: Tensor) -> Generated:
    """Tensors from hypotheses, `count` for each sentence."""
    everything = [hypothesis for sentence in found for hypothesis in sentence]
    longest = max((len(hypothesis.tokens) for hypothesis in everything), default=0)
    tokens = torch.full((len(found), count, longest), pad_id, device=memory.device)
    scores = torch.full((len(found), count), -torch.inf, device=memory.device)
    with_attention = len(everything) > 0 and all(hypothesis.attention is not None for hypothesis in everything)
    attention = memory.new_zeros(*tokens.shape, memory.shape[1]) if with_attention else None
    for b, sentence in enumerate(found):
        for r, hypothesis in enumerate(sentence):
            length = len(hypothesis.tokens)
            tokens[b, r, :length] = hypothesis.tokens
            scores[b, r] = hypothesis.score
            if attention is not None and hypothesis.attention is not None:
                attention[b, r, :length] = hypothesis.attention
    return Generated(tokens, scores, attention)
