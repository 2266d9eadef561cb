"""What captions are like among themselves: how different, how long, how new. No reference is looked at.

A model that has collapsed to one sentence for every image shows here at once, whatever BLEU says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from velm.metrics.ptb import ptb_tokenize

__all__ = ["distinct_captions", "distinct_n", "diversity_of_words", "mean_length", "novelty"]

Tokenize = Callable[[str], list[str]]


def distinct_n(hypotheses: Sequence[str], n: int, *, tokenize: Tokenize = ptb_tokenize) -> float:
    """Different n-grams by n-grams (Li et al., arXiv 1510.03055); 0 where there is none."""
    if n < 1:
        raise ValueError(f"n {n} is below 1: it is a number of words.")
    return _distinct_n([tokenize(sentence) for sentence in hypotheses], n)


def distinct_captions(hypotheses: Sequence[str], *, tokenize: Tokenize = ptb_tokenize) -> float:
    """Different captions by captions: near 0 when a model writes the same for every image."""
    return _distinct(tuple(tokenize(sentence)) for sentence in hypotheses)


def mean_length(hypotheses: Sequence[str], *, tokenize: Tokenize = ptb_tokenize) -> float:
    """Words of a caption, punctuation not counted, in the mean."""
    return _mean_length([tokenize(sentence) for sentence in hypotheses])


def novelty(hypotheses: Sequence[str], training: Iterable[str], *, tokenize: Tokenize = ptb_tokenize) -> float:
    """Share of the captions that are, word for word, none of the training set's.

    Args:
        hypotheses: captions, at least one.
        training: sentences that were trained on; read once, only those that match are kept.
        tokenize: a sentence to words, which are what is compared.
    """
    if not hypotheses:
        raise ValueError("There are no captions: novelty is a share of at least one.")
    words = [tuple(tokenize(sentence)) for sentence in hypotheses]
    written = set(words)
    seen = {known for known in (tuple(tokenize(sentence)) for sentence in training) if known in written}
    return sum(sentence not in seen for sentence in words) / len(words)


def diversity_of_words(words: Sequence[Sequence[str]]) -> dict[str, float]:
    """The figures that need no training set, under the names of metrics.json, of captions already cut into words."""
    return {
        "caption/distinct": _distinct(map(tuple, words)),
        "caption/distinct1": _distinct_n(words, 1),
        "caption/distinct2": _distinct_n(words, 2),
        "caption/length": _mean_length(words),
    }


def _distinct_n(sentences: Sequence[Sequence[str]], n: int) -> float:
    return _distinct(tuple(s[i : i + n]) for s in sentences for i in range(len(s) - n + 1))


def _mean_length(sentences: Sequence[Sequence[str]]) -> float:
    return sum(map(len, sentences)) / len(sentences) if sentences else 0.0


def _distinct(things: Iterable[tuple[str, ...]]) -> float:
    things = list(things)
    return len(set(things)) / len(things) if things else 0.0
