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
        self.may_stick = self.rules is not None or len({*suppress, eos_id}) == vocab_size
        self.repeats = config.no_repeat_ngram if config.answers is None else 0

    def __call__(self, scores: Tensor, tokens: Tensor, states: Tensor) -> Tensor:
        """Scores float (R, V) without what may not follow the tokens written.

        Args:
            scores: float (R, V); may be written into.
            tokens: int64 (R, t).
            states: int64 (R,).
        """
        written = tokens.shape[1]
        if written < len(self.config.prefix):
            word = self.config.prefix[written]
            return torch.full_like(scores, -torch.inf).index_copy(
                1, self.suppress.new_tensor([word]), scores[:, word : word + 1]
            )
        hard = scores.index_fill_(1, self.suppress, -torch.inf)
        if self.rules is not None:
            hard = self.rules.forbid(hard, states, self.limit - written)
        soft = forbid_repeats(hard, tokens, self.repeats) if self.repeats else hard
        if written + 1 < self.config.min_length:
            soft = soft.clone() if soft is hard and self.may_stick else soft
            soft[:, self.eos_id] = -torch.inf
        return soft if soft is hard else self._unstick(soft, hard)

    def advance(self, states: Tensor, words: Tensor) -> Tensor:
        """The states after one more word, int64, in the shape of both."""
        return states if self.rules is None else self.rules.advance(states, words)

    def _unstick(self, allowed: Tensor, hard: Tensor) -> Tensor:
        """Rows of `allowed` that are left nothing may end; or, where they may not, do what they may by `hard`."""
        stuck = allowed.amax(dim=1) == -torch.inf
        if not bool(stuck.any()):
            return allowed
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
