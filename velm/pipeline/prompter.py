"""The prompts of a decoder with a template, made of what a user asks."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from velm.data.base import Turn
from velm.data.batches.collate import pad_prompts
from velm.data.text.base import Tokenizer
from velm.data.text.template import PromptIds, Template
from velm.decoders.base import Decoder
from velm.errors import DataError, PipelineError
from velm.prompt import Prompt

__all__ = ["Prompter"]

ROOM = 2  # tokens that a prompt leaves for an answer and its eos


class Prompter:
    """Makes a batch of prompts; nothing for a decoder without a template.

    Args:
        decoder: of the model, or None.
        tokenizer: the one it was trained with.
        max_length: longest prompt with its answer in the training, in tokens; texts of longer ones are cut.
    """

    def __init__(self, decoder: Decoder | None, tokenizer: Tokenizer, max_length: int) -> None:
        template = None if decoder is None else decoder.template
        self.template = None if template is None else Template(template, tokenizer)
        self.lead = "" if self.template is None else self.template.lead
        self.tokenizer, self.max_length = tokenizer, max_length

    def __call__(self, texts: Sequence[str], histories: Sequence[Sequence[Turn]] | None = None) -> Prompt | None:
        """The prompts of texts after their histories; None without a template.

        Raises:
            PipelineError: a text contains a special token of the tokenizer, or the prompt is too long without it.
        """
        if self.template is None:
            return None
        prompts = [self._prompt(i, text, () if histories is None else histories[i]) for i, text in enumerate(texts)]
        long = sum(cut for _, cut in prompts)
        if long:
            warnings.warn(
                f"{long} of {len(texts)} prompts are longer than the {self.max_length} tokens that the model was "
                f"trained with; their texts are cut.",
                stacklevel=4,
            )
        return pad_prompts([prompt for prompt, _ in prompts], self.tokenizer.pad_id)

    def _prompt(self, number: int, text: str, history: Sequence[Turn]) -> tuple[PromptIds, bool]:
        """The prompt of a text, and whether the text was cut."""
        assert self.template is not None
        try:
            prompt = self.template.prompt(text, history)
        except DataError as error:
            raise PipelineError(f"texts[{number}]: {error}. Leave it out of the text.") from error
        excess = len(prompt.before) + len(prompt.after) + ROOM - self.max_length
        if excess <= 0:
            return prompt, False
        ids = self.tokenizer.to_ids(text)
        if excess >= len(ids):
            raise PipelineError(
                f"texts[{number}]: the prompt has {excess - ROOM + self.max_length} tokens, and the model was trained "
                f"with {self.max_length}, prompt and answer together: shorten what was said before."
            )
        return self._prompt(number, self.tokenizer.to_text(ids[: len(ids) - excess]), history)[0], True
