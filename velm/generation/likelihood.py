"""The likelihood of given texts under a decoder."""

from __future__ import annotations

import torch
from torch import Tensor

from velm.decoders.base import Decoder
from velm.util import evaluating


@torch.no_grad()
def log_likelihood(
    decoder: Decoder, tokens: Tensor, mask: Tensor, memory: Tensor, memory_mask: Tensor | None = None
) -> Tensor:
    """log P(text | memory) including eos, in nats.

    Equals the score that beam search with `length_penalty` 0 gives the text. The decoder runs step by step, as in
    generation, so that a memory shared by many texts is stored and projected once.

    Args:
        decoder: runs in eval mode; its modes are restored afterwards.
        tokens: int64 (B, T), bos ... eos, padded at the end.
        mask: bool (B, T), True on bos ... eos.
        memory: float (G, N, memory_dim), B a multiple of G: text r belongs to memory r // (B / G).
        memory_mask: bool (G, N), True on content; None: all content.

    Returns:
        float (B,), at least float32.

    Raises:
        ValueError: B is not a multiple of G.
    """
    if len(memory) == 0 or len(tokens) % len(memory):
        raise ValueError(f"{len(tokens)} texts for {len(memory)} memories: each memory takes the same number of texts.")
    copies = len(tokens) // len(memory)
    with evaluating(decoder):
        state = decoder.start(memory, memory_mask)
        if copies > 1:
            state = state.select(torch.arange(len(memory), device=memory.device).repeat_interleave(copies))
        total = torch.zeros(len(tokens), device=memory.device, dtype=torch.promote_types(memory.dtype, torch.float32))
        for token, following, content in zip(tokens.T[:-1], tokens.T[1:], mask.T[1:], strict=True):
            logits, state = decoder.step(token, state)
            log_p = logits.to(total.dtype).log_softmax(dim=1).gather(1, following[:, None])[:, 0]
            total += log_p.where(content, 0)
    return total
