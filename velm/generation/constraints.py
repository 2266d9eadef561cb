"""What may not be written: log-probabilities of forbidden tokens become -inf."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from velm.generation.config import GenerationConfig


class Constraints:
    """The rules of a search, in one place.

    A sentence that is left no token at all may end, so that none is stuck.

    Args:
        config: `min_length` and `no_repeat_ngram` are read.
        eos_id: the token that ends a sentence.
        suppress: token ids that are never written.
        vocab_size: number of tokens.
        device: where the log-probabilities are.
    """

    def __init__(
        self,
        config: GenerationConfig,
        *,
        eos_id: int,
        suppress: Sequence[int],
        vocab_size: int,
        device: torch.device,
    ) -> None:
        for token in (eos_id, *suppress):
            if not 0 <= token < vocab_size:
                raise ValueError(f"token {token} is not in the vocabulary of {vocab_size} tokens (0 to V - 1).")
        self.config, self.eos_id = config, eos_id
        self.suppress = torch.tensor(sorted(set(suppress)), dtype=torch.int64, device=device)

    def __call__(self, log_probs: Tensor, tokens: Tensor) -> Tensor:
        """Forbid, in log_probs float (R, V), what may not follow the tokens written, int64 (R, t)."""
        allowed = log_probs.index_fill(1, self.suppress, -torch.inf)
        if tokens.shape[1] + 1 < self.config.min_length:
            allowed[:, self.eos_id] = -torch.inf
        if self.config.no_repeat_ngram:
            allowed = forbid_repeats(allowed, tokens, self.config.no_repeat_ngram)
        stuck = (allowed == -torch.inf).all(dim=1)
        allowed[:, self.eos_id] = torch.where(stuck, log_probs[:, self.eos_id], allowed[:, self.eos_id])
        return allowed


def forbid_repeats(log_probs: Tensor, tokens: Tensor, size: int) -> Tensor:
    """Forbid tokens that would complete an n-gram of `size` tokens for the second time.

    tokens  a b c a b    size 3    the last two, a b, were followed by c: c is forbidden
    """
    if tokens.shape[1] < size:
        return log_probs
    ngrams = tokens.unfold(1, size, 1)  # (R, t - size + 1, size)
    tail = tokens[:, tokens.shape[1] - size + 1 :]
    repeated = (ngrams[:, :, :-1] == tail[:, None, :]).all(dim=2)
    rows, places = repeated.nonzero(as_tuple=True)
    return log_probs.index_put((rows, ngrams[rows, places, -1]), log_probs.new_tensor(-torch.inf))
