"""How likely a decoder holds sentences to be that are already written."""

from __future__ import annotations

import torch
from torch import Tensor

from velm.decoders.base import Decoder
from velm.generation.engine import evaluating

__all__ = ["log_likelihood"]


@torch.no_grad()
def log_likelihood(
    decoder: Decoder, tokens: Tensor, mask: Tensor, memory: Tensor, memory_mask: Tensor | None = None
) -> Tensor:
    """log P(y | memory) of whole sentences, eos included, in nats.

    The number that beam search with `length_penalty` 0 gives a sentence it has written. The decoder steps, as it does
    when it writes, so that what many sentences attend over is held and projected once.

    Args:
        decoder: in whatever mode; it reads in eval mode and is put back.
        tokens: int64 (B, T), bos ... eos, padded at the end.
        mask: bool (B, T), True on bos ... eos.
        memory: float (G, N, memory_dim), B a multiple of G: sentence r is about memory r // (B / G).
        memory_mask: bool (G, N); None when there is content everywhere.

    Returns:
        float (B,), in float32 at least.
    """
    if len(memory) == 0 or len(tokens) % len(memory):
        raise ValueError(f"{len(tokens)} sentences about {len(memory)} memories: each takes the same number of them.")
    copies = len(tokens) // len(memory)
    with evaluating(decoder):
        state = decoder.start(memory, memory_mask)
        if copies > 1:
            state = state.select(torch.arange(len(memory), device=memory.device).repeat_interleave(copies))
        total = torch.zeros(len(tokens), device=memory.device, dtype=torch.promote_types(memory.dtype, torch.float32))
        for word, following, content in zip(tokens.T[:-1], tokens.T[1:], mask.T[1:], strict=True):
            logits, state = decoder.step(word, state)
            log_p = logits.to(total.dtype).log_softmax(dim=1).gather(1, following[:, None])[:, 0]
            total += log_p.where(content, 0)
    return total
