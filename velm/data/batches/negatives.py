"""Hard negatives of training captions, drawn at random for each sample and epoch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from velm.data.base import Record, text_only
from velm.data.text.hard_negatives import KINDS, REPLACED, all_hard_negatives, words_of
from velm.errors import DataError

__all__ = ["NegativeDraws"]

EXAMINED = 50_000
"""Records, evenly spaced, whose captions are examined for words; the lists have some 30 words to replace with."""


class NegativeDraws:
    """Draws hard negatives of a caption (`velm.data.text.hard_negatives`), as many kinds of them as possible.

    The exchanged words of NegCLIP (Yuksekgonul et al. 2023, arXiv 2210.01936), and replaced words besides; by lists of
    English words in place of a tagger.

    Args:
        count: K, hard negatives per caption, >= 1.
        known: words that replacements are taken from.
    """

    def __init__(self, count: int, known: Sequence[str]) -> None:
        self.count, self.known = count, frozenset(known)

    @classmethod
    def of_records(cls, records: Sequence[Record], count: int) -> NegativeDraws:
        """Draws whose replacements are words of the records' captions.

        Raises:
            DataError: no caption has words to exchange or to replace.
        """
        replacements = {word for words in REPLACED.values() for word in words}
        step = -(-len(records) // EXAMINED)
        texts = [text for index in range(0, len(records), step) for text in text_only(records, index).texts]
        known = {word for text in texts for word in words_of(text)} & replacements
        draws = cls(count, sorted(known))
        if not any(draws.candidates([text], 0) for text in texts):
            example = repr(texts[0][:80]) if texts else "none"
            raise DataError(
                f"losses.contrastive.hard_negatives is {count}, and none of the {len(texts):,} training captions that "
                f"were examined has words to exchange or to replace, e.g. {example}. The rules know lists of English "
                f"colours, sizes, shapes, relations, adjectives and nouns. Set hard_negatives: 0."
            )
        return draws

    def candidates(self, texts: Sequence[str], index: int) -> list[list[str]]:
        """The hard negatives of `texts[index]` by kind, without empty kinds; none has the words of one of `texts`."""
        correct = {words_of(text) for text in texts}
        kinds = ([*all_hard_negatives(texts[index], kind, self.known)] for kind in KINDS)
        valid = ([negative for negative in found if words_of(negative) not in correct] for found in kinds)
        return [found for found in valid if found]

    def __call__(self, texts: Sequence[str], index: int, rng: np.random.Generator) -> list[str]:
        """At most `count` distinct hard negatives of `texts[index]`, each of another kind while there are kinds.

        Args:
            texts: the correct captions of the image.
            index: of the caption that is changed.
            rng: all randomness.
        """
        kinds = [rng.permutation(found).tolist() for found in self.candidates(texts, index)]
        drawn: dict[str, None] = {}
        while kinds and len(drawn) < self.count:
            for number in rng.permutation(len(kinds)):
                if len(drawn) < self.count:
                    drawn.setdefault(kinds[number].pop())
            kinds = [found for found in kinds if found]
        return list(drawn)
