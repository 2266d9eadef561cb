"""What each single caption adds to the figures of captions, so that figures of many resamples are a matrix product."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from velm.evaluation.predictions import Written
from velm.metrics.captioning import bleu_counts, cider_scores, exact_match, rouge_l
from velm.metrics.ptb import ptb_tokenize

__all__ = ["CaptionScores", "bleu_of_counts", "caption_scores"]


@dataclass(frozen=True)
class CaptionScores:
    """A row a caption.

    Attributes:
        bleu: float64 (k, 10), what BLEU is made of: n-grams that are right (n = 1 ... 4), n-grams written, words
            written, words of the reference closest in length. Added up over captions before BLEU is taken.
        cider: float64 (k,), CIDEr-D with the document frequencies of all k; its mean is the figure.
        rouge_l: float64 (k,).
        exact: float64 (k,), 1 where the caption is one of its references.
    """

    bleu: np.ndarray
    cider: np.ndarray
    rouge_l: np.ndarray
    exact: np.ndarray

    @property
    def length(self) -> np.ndarray:
        """float64 (k,), words written."""
        return self.bleu[:, 8]


def caption_scores(written: Sequence[Written]) -> CaptionScores:
    """The scores of captions one by one; every one has a reference."""
    words = [ptb_tokenize(row.caption) for row in written]
    right = [[ptb_tokenize(reference) for reference in row.references] for row in written]
    pairs = [(" ".join(w), [" ".join(each) for each in r]) for w, r in zip(words, right, strict=True)]
    return CaptionScores(
        bleu=np.array([bleu_counts(*pair) for pair in zip(words, right, strict=True)], dtype=np.float64),
        cider=np.array(cider_scores(words, right, d=True)),
        rouge_l=np.array([rouge_l([w], [r], tokenize=str.split) for w, r in pairs]),
        exact=np.array([exact_match([w], [r], tokenize=str.split) for w, r in pairs]),
    )


def bleu_of_counts(counts: np.ndarray) -> np.ndarray:
    """BLEU-1 to BLEU-4, float64 (R, 4), of summed counts float64 (R, 10); as `velm.metrics.bleu`."""
    tiny, small = 1e-15, 1e-9
    correct, guessed, length, reference = counts[:, :4], counts[:, 4:8], counts[:, 8], counts[:, 9]
    ratio = (length + tiny) / (reference + small)
    brevity = np.exp(np.minimum(0.0, 1 - 1 / ratio))
    precision = np.cumsum(np.log((correct + tiny) / (guessed + small)), axis=1) / np.arange(1, 5)
    return np.exp(precision) * brevity[:, None]
