"""Text generation for a batch of memories with any decoder, complete or token by token.

Shapes: B memories of N positions, R texts per memory, S tokens of the longest text.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from velm.decoders.base import Decoder
from velm.generation.config import GenerationConfig
from velm.generation.constraints import Constraints
from velm.generation.hypotheses import FinishedHypotheses, Hypothesis
from velm.generation.search import Search
from velm.layers.packed_linear import packed_linears
from velm.util import evaluating


@dataclass(frozen=True)
class Generated:
    """R texts for each of B memories, best first (samples: in the order drawn).

    Attributes:
        tokens: int64 (B, R, S), without bos, with eos unless cut at max_length, padded at the end.
        scores: float (B, R), sum of the decoder's log p over length ** length_penalty; -inf for a text that was not
            found, whose tokens are all padding.
        log_probs: float (B, R, S), the decoder's log p of each token, before the rules of the config; 0 on padding.
        attention: float (B, R, S, N), the decoder's attention for each token, 0 on padding; None unless requested and
            available.
    """

    tokens: Tensor
    scores: Tensor
    log_probs: Tensor
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
    constraints: Constraints | None = None,
) -> Generated:
    """Generate texts for B memories: greedy, by beam search or by sampling, as configured.

    Beam search keeps `num_beams` live hypotheses; of the best continuations those with eos are finished, and a search
    ends when `num_beams` are finished (as in fairseq, Ott et al. 2019). One beam is greedy search. A text does not
    depend on the rest of the batch, except samples: the generator's random numbers are shared by the batch. No text is
    longer than `decoder.max_length`.

    Args:
        decoder: runs in eval mode; its modes are restored afterwards.
        memory: float (B, N, memory_dim).
        memory_mask: bool (B, N), True on content; None: all content.
        config: None: greedy.
        suppress: token ids that are never generated, such as pad, bos and unk.
        constraints: compiled from the config for this decoder, so that many batches share them; None: compiled here.

    Raises:
        ValueError: the config contradicts itself, the vocabulary or `decoder.max_length`; raised before decoding.
    """
    config = _greedy_by_default(config)
    if constraints is None:
        constraints = Constraints(config, decoder, eos_id=eos_id, suppress=suppress, device=memory.device)
    search = Search(decoder, constraints, bos_id, memory.device, generator, return_attention)
    searches = len(memory) * search.copies
    finished = FinishedHypotheses(searches, search.beams, config.length_penalty)
    with evaluating(decoder), packed_linears(decoder, searches):
        state = search.start(memory, memory_mask)
        deque(search.run(state, searches, finished), maxlen=0)
    if config.temperature is None:
        texts = finished.best(config.num_return, search.groups)
    else:
        samples = finished.best(1)
        texts = [list(chain(*samples[i : i + search.copies])) for i in range(0, len(samples), search.copies)]
    return _padded(texts, config.num_return, pad_id, memory)


@torch.no_grad()
def stream(
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
    constraints: Constraints | None = None,
) -> Iterator[Tensor]:
    """As `generate`, but yields the tokens of each step, int64 (B,), as soon as they are decided; padding after eos.

    Greedy search or one sample per memory. The decoder is in eval mode until the iterator is exhausted or closed.

    Raises:
        ValueError: as `generate`; or several beams or samples, which are decided at the end only.
    """
    config = _greedy_by_default(config)
    if config.num_beams > 1 or config.num_return > 1:
        raise ValueError(
            f"num_beams {config.num_beams} and num_return {config.num_return}: the text is decided at the end only. "
            "Stream greedily or with a temperature, one text per memory."
        )
    if constraints is None:
        constraints = Constraints(config, decoder, eos_id=eos_id, suppress=suppress, device=memory.device)
    return _stream(Search(decoder, constraints, bos_id, memory.device, generator), memory, memory_mask, pad_id)


@torch.no_grad()
def _stream(search: Search, memory: Tensor, memory_mask: Tensor | None, pad_id: int) -> Iterator[Tensor]:
    ended = torch.zeros(len(memory), dtype=torch.bool, device=memory.device)
    with evaluating(search.decoder), packed_linears(search.decoder, len(memory)):
        state = search.start(memory, memory_mask)
        for live in search.run(state, len(memory), FinishedHypotheses(len(memory), 1, 0.0)):
            tokens = torch.full((len(memory),), pad_id, device=memory.device)
            tokens[live.searches] = live.last_tokens[:, 0]
            yield tokens.masked_fill(ended, pad_id)
            ended = ended | (tokens == search.constraints.eos_id)


def _greedy_by_default(config: GenerationConfig | None) -> GenerationConfig:
    config = GenerationConfig() if config is None else config
    if config.rerank_by_alignment is not None:
        raise ValueError(
            "rerank_by_alignment needs the embeddings of image and caption, which a decoder does not have; "
            "pipeline.caption(...) does."
        )
    return config


def _padded(texts: list[list[Hypothesis]], count: int, pad_id: int, memory: Tensor) -> Generated:
    """Tensors of the hypotheses, at most `count` per memory."""
    everything = [hypothesis for hypotheses in texts for hypothesis in hypotheses]
    longest = max((len(hypothesis.tokens) for hypothesis in everything), default=0)
    tokens = torch.full((len(texts), count, longest), pad_id, device=memory.device)
    log_probs = torch.zeros(tokens.shape, device=memory.device)
    scores = torch.full((len(texts), count), -torch.inf, device=memory.device)
    with_attention = len(everything) > 0 and all(hypothesis.attention is not None for hypothesis in everything)
    attention = memory.new_zeros(*tokens.shape, memory.shape[1]) if with_attention else None
    for b, hypotheses in enumerate(texts):
        for r, hypothesis in enumerate(hypotheses):
            length = len(hypothesis.tokens)
            tokens[b, r, :length] = hypothesis.tokens
            log_probs[b, r, :length] = hypothesis.log_probs
            scores[b, r] = hypothesis.score
            if attention is not None and hypothesis.attention is not None:
                attention[b, r, :length] = hypothesis.attention
    return Generated(tokens, scores, log_probs, attention)
