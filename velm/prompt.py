"""`Prompt`: the text around the image that a language model reads before it writes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

__all__ = ["CHAT", "Prompt", "takes_text", "text_follows"]

CHAT = "chat"
"""The template of a decoder that stands for the tokenizer's own."""


def takes_text(template: str | None) -> bool:
    """Whether a template has a place for a text of the data."""
    return template is not None and (template == CHAT or "{text}" in template)


def text_follows(template: str | None) -> bool:
    """Whether a text of the data stands behind the image, so that all before it is the same for all texts."""
    return template is None or template == CHAT or "{image}" not in template.partition("{text}")[2]


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

    def trim(self) -> Prompt:
        """Without the columns that hold only padding."""
        before, after = (int(mask.sum(dim=1).max()) for mask in (self.before_mask, self.after_mask))
        return Prompt(
            self.before[:, :before], self.before_mask[:, :before], self.after[:, :after], self.after_mask[:, :after]
        )
