"""What may not be written: scores of forbidden tokens become -inf."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from velm.generation.config import GenerationConfig
from velm.generation.rules import compile_rules


class Constraints:
    """The rules of a search, in one place.

    What a hypothesis has written so far is summed up in its state, an int64; the empty sentence has state 0. A sentence
    that `no_repeat_ngram` and `min_length` leave no token at all may end, so that none is stuck; where it may not, for
    something is missing that must be included, these two give way.

    Args:
        config: all of it that says what may be written.
        eos_id: the token that ends a sentence.
        suppress: token ids that are never written.
        vocab_size: number of tokens.
        limit: most tokens that will be written, eos included.
        device: where the scores are.
    """

    def __init__(
        self,
        config: GenerationConfig,
        *,
        eos_id: int,
        suppress: Sequence[int],
        vocab_size: int,
        limit: int,
        device: torch.device,
    ) -> None:
        for token in (eos_id, *suppress):
            if not 0 <= token < vocab_size:
                raise ValueError(f"token {token} is not in the vocabulary of {vocab_size} tokens (0 to V - 1).")
        self.config, self.eos_id, self.limit, self.vocab_size = config, eos_id, limit, vocab_size
        self.suppress = torch.tensor(sorted(set(suppress)), dtype=torch.int64, device=device)
        self.rules = compile_rules(
            config, eos_id=eos_id, suppress=suppress, vocab_size=vocab_size, limit=limit, device=device
        )
        self.repeats = config.no_repeat_ngram if config.answers is None else 0

    def __call__(self, scores: Tensor, tokens: Tensor, states: Tensor) -> Tensor:
        """A copy of scores float (R, V) without what may not follow the tokens written, int64 (R, t).

        Args:
            scores: float (R, V), as the decoder gave them.
            tokens: int64 (R, t).
            states: int64 (R,).
        """
        written = tokens.shape[1]
        if written < len(self.config.prefix):
            word = self.config.prefix[written]
            return torch.full_like(scores, -torch.inf).index_copy(
                1, self.suppress.new_tensor([word]), scores[:, word : word + 1]
            )
        allowed = scores.index_fill(1, self.suppress, -torch.inf)
        if self.rules is not None:
            allowed = self.rules.forbid(allowed, states, self.limit - written)
        hard, early = allowed, written + 1 < self.config.min_length
        if early:
            allowed = allowed.index_fill(1, self.suppress.new_tensor([self.eos_id]), -torch.inf)
        if self.repeats:
            allowed = forbid_repeats(allowed, tokens, self.repeats)
        return self._unstick(allowed, hard) if early or self.repeats else allowed

    def advance(self, states: Tensor, words: Tensor) -> Tensor:
        """The states after one more word, int64, in the shape of both."""
        return states if self.rules is None else self.rules.advance(states, words)

    def _unstick(self, allowed: Tensor, hard: Tensor) -> Tensor:
        """Rows of `allowed` that are left nothing may end; or, where they may not, do what they may by `hard`."""
        stuck = (allowed == -torch.inf).all(dim=1)
        may_end = hard[:, self.eos_id] > -torch.inf
        allowed = allowed.where(~(stuck & ~may_end)[:, None], hard)
        allowed[:, self.eos_id] = hard[:, self.eos_id].where(stuck, allowed[:, self.eos_id])
        return allowed


def forbid_repeats(scores: Tensor, tokens: Tensor, size: int) -> Tensor:
    """Forbid tokens that would complete an n-gram of `size` tokens for the second time.

    tokens  a b c a b    size 3    the last two, a b, were followed by c: c is forbidden
    """
    if tokens.shape[1] < size:
        return scores
    ngrams = tokens.unfold(1, size, 1)  # (R, t - size + 1, size)
    tail = tokens[:, tokens.shape[1] - size + 1 :]
    repeated = (ngrams[:, :, :-1] == tail[:, None, :]).all(dim=2)
    rows, places = repeated.nonzero(as_tuple=True)
    return scores.index_put((rows, ngrams[rows, places, -1]), scores.new_tensor(-torch.inf))
