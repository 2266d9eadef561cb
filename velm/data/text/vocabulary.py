"""How much of a split the vocabulary covers, before training begins."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence

import numpy as np

from velm.data.base import Record, text_only
from velm.data.text.base import Tokenizer

__all__ = ["check_vocabulary", "sampled_indices", "sampled_texts", "unknown_advice"]

UNKNOWN = 0.5  # fraction of unknown tokens; more is a warning


def check_vocabulary(records: Sequence[Record], tokenizer: Tokenizer, limit: int = 1000) -> float:
    """The fraction of the tokens of validation texts that are unknown; warns if it is more than half.

    Args:
        records: of the validation split.
        tokenizer: trained on the training split.
        limit: maximum number of records to read, evenly spaced over the split.
    """
    unknown = total = 0
    example = ""
    for text in sampled_texts(records, limit):
        ids = tokenizer.to_ids(text)
        count = ids.count(tokenizer.unk_id)
        unknown, total, example = unknown + count, total + len(ids), example or (text if count else "")
    share = unknown / max(total, 1)
    if share > UNKNOWN:
        warnings.warn(
            f"{100 * share:.0f}% of the tokens of the validation split are unknown: the vocabulary of "
            f"{tokenizer.vocab_size:,} ids was learned from the training split. The first such text: "
            f"{example[:60]!r}. {unknown_advice(tokenizer)}",
            stacklevel=2,
        )
    return share


def unknown_advice(tokenizer: Tokenizer) -> str:
    """What to set where many tokens are unknown."""
    options = tokenizer.state().get("options", {})
    advice = []
    if options.get("segment") == "none":
        advice.append("data.tokenizer.segment=auto, where Chinese, Japanese or Thai has no blanks between words")
    if options.get("min_frequency", 1) > 1:
        advice.append(f"data.tokenizer.min_frequency below {options['min_frequency']}")
    if options.get("max_size") is not None:
        advice.append(f"data.tokenizer.max_size above {options['max_size']}")
    advice.append("a tokenizer without unknown words: data.tokenizer.name=bpe or byte")
    return f"Check that the splits are in one language, or set {'; '.join(advice)}."


def sampled_indices(count: int, limit: int) -> list[int]:
    """At most `limit` of `count` indices, evenly spaced."""
    indices: list[int] = np.unique(np.linspace(0, count - 1, min(limit, count)).round().astype(int)).tolist()
    return indices


def sampled_texts(records: Sequence[Record], limit: int) -> Iterator[str]:
    """The texts and targets of at most `limit` records, evenly spaced."""
    for index in sampled_indices(len(records), limit):
        record = text_only(records, index)
        yield from (*record.texts, *(record.targets or ()))
