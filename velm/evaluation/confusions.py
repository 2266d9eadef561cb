"""What is taken for what: the images nearest to a wrong sentence, and the words written for others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

import torch

from velm.evaluation.compositional.lexicon import FUNCTION_WORDS
from velm.evaluation.predictions import Predictions, Written
from velm.metrics.ptb import ptb_tokenize

__all__ = ["Confusion", "hardest", "swapped_words"]


@dataclass(frozen=True)
class Confusion:
    """An image and the wrong sentence nearest to it.

    Attributes:
        image: row of the image.
        wrong: row of the wrong text.
        right: row of the best of its own texts.
        margin: cosine of the wrong less that of the right one; above 0 it is mistaken.
    """

    image: int
    wrong: int
    right: int
    margin: float


def hardest(predictions: Predictions, count: int, *, block_size: int = 1024) -> list[Confusion]:
    """The images with the largest margin of a wrong text over their own, largest first.

    Args:
        predictions: of a model that aligns.
        count: confusions wanted, at most.
        block_size: images at a time; memory is this times the number of texts.
    """
    image, text, ids = predictions.image_embeds, predictions.text_embeds, predictions.image_ids
    assert image is not None
    assert text is not None
    assert ids is not None
    found: list[Confusion] = []
    for start in range(0, len(image), block_size):
        rows = torch.arange(start, min(start + block_size, len(image)))
        cosines = image[rows].float() @ text.float().T
        own = ids[None, :] == rows[:, None]
        wrong, right = (cosines.masked_fill(mask, -torch.inf).max(dim=1) for mask in (own, ~own))
        margins = wrong.values - right.values
        for row in margins.topk(min(count, len(rows))).indices.tolist():
            margin = float(margins[row])
            if torch.isfinite(margins[row]):
                found.append(Confusion(start + row, int(wrong.indices[row]), int(right.indices[row]), margin))
    return sorted(found, key=lambda confusion: -confusion.margin)[:count]


def swapped_words(written: Sequence[Written], count: int) -> list[tuple[str, str, int]]:
    """What stood where another word would have been right: (right, written, how often), most often first.

    A caption is laid beside the reference that it shares most with; spans of as many words on both sides are read as
    swapped, word by word. An article for another, a preposition for another and their like are left out: they are the
    commonest, and say little of what was seen.
    """
    swaps: Counter[tuple[str, str]] = Counter()
    for row in written:
        words = ptb_tokenize(row.caption)
        right = [ptb_tokenize(reference) for reference in row.references]
        if not words or words in right:
            continue
        matches = [(SequenceMatcher(None, reference, words, autojunk=False), reference) for reference in right]
        nearest, reference = max(matches, key=lambda match: match[0].ratio())
        for kind, a, b, c, d in nearest.get_opcodes():
            if kind == "replace" and b - a == d - c:
                pairs = zip(reference[a:b], words[c:d], strict=True)
                swaps.update(pair for pair in pairs if not FUNCTION_WORDS.issuperset(pair))
    return [(right, wrong, times) for (right, wrong), times in swaps.most_common(count)]
