"""Lengths of texts and targets in tokens, and how they are cut to the longest that is allowed."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from velm.data.base import Record, text_only
from velm.data.text.base import Tokenizer, truncate
from velm.data.text.template import PromptIds, Template
from velm.data.text.vocabulary import sampled_indices, sampled_texts
from velm.errors import DataError

__all__ = ["check_lengths", "fit_answer", "template_lengths", "truncate"]


def fit_answer(prompt: PromptIds, target: list[int], learnt: list[bool], max_length: int | None) -> dict[str, Any]:
    """Prompt, target and what is learnt of it as fields of a sample, cut to `max_length` tokens in all.

    Raises:
        DataError: what is left of the target holds no token of an answer.
    """
    read = len(prompt.before) + len(prompt.after)
    if max_length is not None and read + len(target) > max_length:
        room = max(max_length - read, 0)
        if room < 3 or not any(learnt[: room - 1]):  # bos, a token of an answer, eos
            raise DataError(
                f"the prompt has {read} tokens, and max_length {max_length} leaves no room for an answer behind it"
            )
        learnt = learnt[:room]
        target = truncate(target, room) if learnt[-1] else target[:room]  # an answer ends, also one that is cut
    return {"prompt": prompt, "target": target, "learnt": None if all(learnt[1:]) else learnt}


def check_lengths(
    records: Sequence[Record],
    tokenizer: Tokenizer,
    max_length: int,
    limit: int = 10_000,
    template: Template | None = None,
) -> int:
    """Count the texts and targets longer than `max_length` tokens, which are truncated; warns if there are any.

    Args:
        template: of the data, whose prompts count with the targets behind them; None: texts and targets count alone.
        limit: maximum number of records to read, evenly spaced over the split.

    Returns:
        the number of long texts among the records read.
    """
    if template is None:
        lengths = np.array([tokenizer.length(text) for text in sampled_texts(records, limit)])
    else:
        rows = [text_only(records, index) for index in sampled_indices(len(records), limit)]
        lengths = np.array([length for record in rows for length in template_lengths(record, template)])
    long, longest = int((lengths > max_length).sum()), int(lengths.max())
    if long:
        warnings.warn(
            f"{long} of {len(lengths)} captions ({100 * long / len(lengths):.1f}%) are longer than max_length = "
            f"{max_length} tokens (bos and eos included) and are truncated; the longest has {longest}. "
            f"Set max_length to {longest} to keep them whole.",
            stacklevel=2,
        )
    return long


def template_lengths(record: Record, template: Template) -> list[int]:
    """Tokens of prompt and target for each text of a record; 0 where the template refuses a text."""
    lengths = []
    for index, text in enumerate(record.texts):
        answer = text if record.targets is None else record.targets[index]
        try:
            prompt, target, _ = template.sample(text, answer, record.history(index))
        except DataError:  # named when the sample is read
            lengths.append(0)
        else:
            lengths.append(len(prompt.before) + len(prompt.after) + len(target))
    return lengths
