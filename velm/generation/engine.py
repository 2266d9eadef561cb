"""Writing: sentences for a batch of memories, whole or a token at a time, with any decoder."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from velm.decoders.base import Decoder
from velm.generation.config import GenerationConfig
from velm.generation.hypotheses import Finished, Hypothesis
from velm.generation.search import Search


@dataclass(frozen=True)
class Generated:
    """R sentences for each of B memories, best first (samples: as drawn).

    Attributes:
        tokens: int64 (B, R, S), without bos, with eos unless cut at max_length, padded at the end.
        scores: float (B, R), sum of the decoder's own log p over length ** length_penalty; -inf beside a
            sentence that could not be found and is all padding.
        log_probs: float (B, R, S), the decoder's own log p of each token, whatever it was forbidden; 0 on padding.
        attention: float (B, R, S, N), where the decoder looked to write each token, 0 on padding; None
            unless asked for and known.
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

    Raises:
        ValueError: the config contradicts itself, the vocabulary or `decoder.max_length`; nothing was written.
    """
    config = _whole(config)
    search = Search(decoder, config, bos_id, eos_id, suppress, generator, return_attention, memory.device)
    sentences = len(memory) * search.copies
    finished = Finished(sentences, search.beams, config.length_penalty)
    with evaluating(decoder):
        state = search.start(memory, memory_mask)
        deque(search.run(state, sentences, finished), maxlen=0)
    if config.temperature is None:
        found = finished.best(config.num_return, search.groups)
    else:
        samples = finished.best(1)
        found = [list(chain(*samples[i : i + search.copies])) for i in range(0, len(samples), search.copies)]
    return _assemble(found, config.num_return, pad_id, memory)


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
) -> Iterator[Tensor]:
    """As `generate`, but hands out each step's tokens int64 (B,) when they are decided; padding after eos.

    Greedy search or one sample a memory. The decoder is in eval mode while this goes on.

    Raises:
        ValueError: as `generate`; or there are several beams or samples, of which none is decided before the end.
    """
    config = _whole(config)
    if config.num_beams > 1 or config.num_return > 1:
        raise ValueError(
            f"num_beams {config.num_beams} and num_return {config.num_return}: what is written is decided at the end "
            "only. Stream greedily or with a temperature, one sentence a memory."
        )
    search = Search(decoder, config, bos_id, eos_id, suppress, generator, False, memory.device)
    return _stream(search, memory, memory_mask, pad_id)


@torch.no_grad()
def _stream(search: Search, memory: Tensor, memory_mask: Tensor | None, pad_id: int) -> Iterator[Tensor]:
    over = torch.zeros(len(memory), dtype=torch.bool, device=memory.device)
    with evaluating(search.decoder):
        state = search.start(memory, memory_mask)
        for live in search.run(state, len(memory), Finished(len(memory), 1, 0.0)):
            tokens = torch.full((len(memory),), pad_id, device=memory.device)
            tokens[live.sentences] = live.words[:, 0]
            yield tokens.masked_fill(over, pad_id)
            over = over | (tokens == search.eos_id)


def _whole(config: GenerationConfig | None) -> GenerationConfig:
    config = GenerationConfig() if config is None else config
    if config.rerank_by_alignment is not None:
        raise ValueError(
            "rerank_by_alignment needs the embeddings of image and sentence, which a decoder does not have; "
            "pipeline.caption(...) does."
        )
    return config


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
    log_probs = torch.zeros(tokens.shape, device=memory.device)
    scores = torch.full((len(found), count), -torch.inf, device=memory.device)
    with_attention = len(everything) > 0 and all(hypothesis.attention is not None for hypothesis in everything)
    attention = memory.new_zeros(*tokens.shape, memory.shape[1]) if with_attention else None
    for b, sentence in enumerate(found):
        for r, hypothesis in enumerate(sentence):
            length = len(hypothesis.tokens)
            tokens[b, r, :length] = hypothesis.tokens
            log_probs[b, r, :length] = hypothesis.log_probs
            scores[b, r] = hypothesis.score
            if attention is not None and hypothesis.attention is not None:
                attention[b, r, :length] = hypothesis.attention
    return Generated(tokens, scores, log_probs, attention)
