"""`Prompt`: the text around the image that a language model reads before it writes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

__all__ = ["Prompt"]


@dataclass
class Prompt:
    """Tokens before and after the image, row b those of sample b, padded at the end.

    Attributes:
        before: int64 (B, P).
        before_mask: bool (B, P), True on content.
        after: int64 (B, Q); the last token of content, or without any the last position of the image, predicts the
            first token of the answer.
        after_mask: bool (B, Q).
    """

    before: Tensor
    before_mask: Tensor
    after: Tensor
    after_mask: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> Prompt:
        """A copy with `function` applied to every tensor."""
        return Prompt(*(function(each) for each in (self.before, self.before_mask, self.after, self.after_mask)))

    def select(self, rows: Tensor) -> Prompt:
        """The prompts of the samples `rows`, int64 (R,)."""
        return self.map(lambda tensor: tensor[rows])
