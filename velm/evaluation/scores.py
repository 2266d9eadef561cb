"""What each single caption adds to the figures of captions, so that figures of many resamples are a matrix product."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from velm.evaluation.predictions import Written
from velm.metrics.captioning import _ngrams, _Vectors, exact_match, rouge_l
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
        bleu=np.array([_bleu_counts(*pair) for pair in zip(words, right, strict=True)], dtype=np.float64),
        cider=_cider_d(words, right),
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


def _bleu_counts(sentence: list[str], right: list[list[str]]) -> list[float]:
    most: Counter[tuple[str, ...]] = Counter()
    for reference in right:
        most |= _ngrams(reference)
    correct, guessed = [0] * 4, [0] * 4
    for ngram, count in _ngrams(sentence).items():
        correct[len(ngram) - 1] += min(count, most[ngram])
        guessed[len(ngram) - 1] += count
    closest = min((abs(len(reference) - len(sentence)), len(reference)) for reference in right)[1]
    return [*correct, *guessed, len(sentence), closest]


def _cider_d(words: list[list[str]], right: list[list[list[str]]]) -> np.ndarray:
    frequency: Counter[tuple[str, ...]] = Counter()
    for references in right:
        frequency.update({ngram for reference in references for ngram in _ngrams(reference)})
    log_pictures = math.log(len(words))
    scores = []
    for sentence, references in zip(words, right, strict=True):
        ours = _Vectors(sentence, frequency, log_pictures)
        theirs = [_Vectors(reference, frequency, log_pictures) for reference in references]
        scores.append(10 * sum(ours.similarity(each, d=True) for each in theirs) / len(theirs))
    return np.array(scores)
