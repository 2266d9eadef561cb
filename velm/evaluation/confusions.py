"""Typical errors: images whose nearest text is wrong, and words that captions confuse."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

import torch

from velm.evaluation.predictions import GeneratedCaption, Retrieval
from velm.metrics.tokenization import tokenize_by

_LISTED = "a an the in on at of to by for from with and or as is are was were be being it its this that"
FUNCTION_WORDS = frozenset(_LISTED.split())
"""Words whose confusion says little about the image."""


@dataclass(frozen=True)
class Confusion:
    """An image and the wrong text nearest to it.

    Attributes:
        image: row of the image.
        wrong: row of the nearest wrong text.
        right: row of the nearest of its own texts.
        margin: cosine of the wrong text minus cosine of the right one; > 0: the image is confused.
    """

    image: int
    wrong: int
    right: int
    margin: float


def hardest_confusions(retrieval: Retrieval, count: int, *, block_size: int = 1024) -> list[Confusion]:
    """The images with the largest margins of a wrong text over their own, largest first.

    Args:
        block_size: images at a time; memory is this times the number of texts.
    """
    image, text, ids = retrieval.image_embeds, retrieval.text_embeds, retrieval.image_ids
    confusions: list[Confusion] = []
    for start in range(0, len(image), block_size):
        rows = torch.arange(start, min(start + block_size, len(image)))
        cosines = image[rows].float() @ text.float().T
        own = ids[None, :] == rows[:, None]
        wrong, right = (cosines.masked_fill(mask, -torch.inf).max(dim=1) for mask in (own, ~own))
        margins = wrong.values - right.values
        for row in margins.topk(min(count, len(rows))).indices.tolist():
            margin = float(margins[row])
            if torch.isfinite(margins[row]):
                confusions.append(Confusion(start + row, int(wrong.indices[row]), int(right.indices[row]), margin))
    return sorted(confusions, key=lambda confusion: -confusion.margin)[:count]


def confused_words(
    captions: Sequence[GeneratedCaption], count: int, tokenize: str = "auto"
) -> list[tuple[str, str, int]]:
    """Words that captions have in place of another: (reference word, generated word, times), most frequent first.

    Each caption is aligned with the most similar reference; replaced spans of equal length count word by word. Pairs
    of function words are ignored: they are frequent and say little about the image.
    """
    split = tokenize_by(tokenize)
    confused: Counter[tuple[str, str]] = Counter()
    for row in captions:
        words = split(row.caption)
        references = [split(reference) for reference in row.references]
        if not words or words in references:
            continue
        matches = [(SequenceMatcher(None, reference, words, autojunk=False), reference) for reference in references]
        nearest, reference = max(matches, key=lambda match: match[0].ratio())
        for kind, a, b, c, d in nearest.get_opcodes():
            if kind == "replace" and b - a == d - c:
                pairs = zip(reference[a:b], words[c:d], strict=True)
                confused.update(pair for pair in pairs if not FUNCTION_WORDS.issuperset(pair))
    return [(right, wrong, times) for (right, wrong), times in confused.most_common(count)]
