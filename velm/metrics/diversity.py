"""Diversity, length and novelty of generated captions; no references are needed.

They reveal a model that has collapsed to one caption for every image, which BLEU may not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from velm.metrics.tokenization import Tokenize, tokenize_by

__all__ = ["distinct_captions", "distinct_n", "diversity_of_words", "mean_length", "novelty"]


def distinct_n(hypotheses: Sequence[str], n: int, *, tokenize: str | Tokenize = "auto") -> float:
    """Distinct n-grams divided by all n-grams (Li et al., arXiv 1510.03055); 0 if there are none."""
    if n < 1:
        raise ValueError(f"n {n} is below 1: it is a number of words.")
    return _distinct_n(list(map(tokenize_by(tokenize), hypotheses)), n)


def distinct_captions(hypotheses: Sequence[str], *, tokenize: str | Tokenize = "auto") -> float:
    """Distinct captions divided by all captions: near 0 if a model repeats one caption."""
    return _distinct(map(tuple, map(tokenize_by(tokenize), hypotheses)))


def mean_length(hypotheses: Sequence[str], *, tokenize: str | Tokenize = "auto") -> float:
    """Mean number of words per caption, without punctuation."""
    return _mean_length(list(map(tokenize_by(tokenize), hypotheses)))


def novelty(hypotheses: Sequence[str], training: Iterable[str], *, tokenize: str | Tokenize = "auto") -> float:
    """Fraction of the captions that do not occur word for word in the training set.

    Args:
        hypotheses: captions, at least one.
        training: training captions; iterated once, only matching ones are stored.
        tokenize: name or function that splits a caption into the words that are compared.
    """
    if not hypotheses:
        raise ValueError("There are no captions: novelty needs at least one.")
    split = tokenize_by(tokenize)
    words = [tuple(split(caption)) for caption in hypotheses]
    candidates = set(words)
    seen = {known for known in (tuple(split(caption)) for caption in training) if known in candidates}
    return sum(caption not in seen for caption in words) / len(words)


def diversity_of_words(words: Sequence[Sequence[str]]) -> dict[str, float]:
    """All metrics but novelty, of tokenized captions, by the keys of metrics.json."""
    return {
        "caption/distinct": _distinct(map(tuple, words)),
        "caption/distinct1": _distinct_n(words, 1),
        "caption/distinct2": _distinct_n(words, 2),
        "caption/length": _mean_length(words),
    }


def _distinct_n(captions: Sequence[Sequence[str]], n: int) -> float:
    return _distinct(tuple(s[i : i + n]) for s in captions for i in range(len(s) - n + 1))


def _mean_length(captions: Sequence[Sequence[str]]) -> float:
    return sum(map(len, captions)) / len(captions) if captions else 0.0


def _distinct(items: Iterable[tuple[str, ...]]) -> float:
    items = list(items)
    return len(set(items)) / len(items) if items else 0.0
