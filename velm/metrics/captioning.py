"""Caption metrics: BLEU, ROUGE-L, CIDEr and CIDEr-D without Java, equal to pycocoevalcap's on the same words.

hypotheses: list[str], one caption per image; references: list[list[str]], the reference captions of each image.
`tokenize` splits captions into words: a name of `velm.metrics.tokenization`, or a function such as `str.split`. The
default 'auto' has pycocoevalcap's words except where its tokenizer cannot read the script; 'ptb' has exactly its words.
Metrics are in [0, 1], CIDEr and CIDEr-D in [0, 10]: the field's "CIDEr 57" is 0.57.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from velm.metrics.diversity import diversity_of_words
from velm.metrics.document_frequency import Counts, DocumentFrequencies, Words, ngrams
from velm.metrics.tokenization import Tokenize, tokenize_by

__all__ = [
    "CaptionScores",
    "bleu",
    "bleu_from_counts",
    "caption_metrics",
    "caption_scores",
    "cider",
    "cider_d",
    "exact_match",
    "rouge_l",
]


@dataclass(frozen=True)
class CaptionScores:
    """Scores of k captions one by one; the metrics of a corpus are made of their sums.

    Attributes:
        words: (k,), the words of each caption.
        bleu_counts: (k, 10), summed over captions before BLEU is computed, see `bleu_from_counts`: clipped n-gram
            matches (n = 1 ... 4), n-grams of the caption (n = 1 ... 4), words of the caption, words of the reference
            closest in length (of two equally close the shorter).
        rouge_l: (k,).
        cider_d: (k,), with the document frequencies of all k images.
        exact: (k,), whether the caption equals one of its references.
    """

    words: list[Words]
    bleu_counts: list[list[int]]
    rouge_l: list[float]
    cider_d: list[float]
    exact: list[bool]


def caption_scores(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], *, tokenize: str | Tokenize = "auto"
) -> CaptionScores:
    """BLEU counts, ROUGE-L, CIDEr-D and exact match of each caption."""
    words, right = _tokenize(hypotheses, references, tokenize)
    pairs = list(zip(words, right, strict=True))
    return CaptionScores(
        words,
        [_bleu_counts(*pair) for pair in pairs],
        [_rouge_l(*pair) for pair in pairs],
        DocumentFrequencies(right).scores(words, right, d=True),
        [caption in references for caption, references in pairs],
    )


def caption_metrics(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], *, tokenize: str | Tokenize = "auto"
) -> dict[str, float]:
    """All metrics below and of `velm.metrics.diversity`, by the keys of metrics.json; `caption/cider` is CIDEr-D."""
    scores = caption_scores(hypotheses, references, tokenize=tokenize)
    bleus = bleu_from_counts(_column_sums(scores.bleu_counts))
    return {f"caption/bleu{n}": score for n, score in enumerate(bleus, start=1)} | {
        "caption/rouge_l": _mean(scores.rouge_l),
        "caption/cider": _mean(scores.cider_d),
        "caption/exact_match": _mean(scores.exact),
        **diversity_of_words(scores.words),
    }


def bleu(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], *, tokenize: str | Tokenize = "auto"
) -> list[float]:
    """BLEU-1 to BLEU-4 of the corpus (Papineni et al. 2002), with the closest reference length."""
    pairs = zip(*_tokenize(hypotheses, references, tokenize), strict=True)
    return bleu_from_counts(_column_sums([_bleu_counts(*pair) for pair in pairs]))


def bleu_from_counts(counts: Sequence[float]) -> list[float]:
    """BLEU-1 to BLEU-4 from the ten sums of `CaptionScores.bleu_counts` over a corpus."""
    *ngrams, length, reference_length = counts
    correct, guessed = ngrams[:4], ngrams[4:]
    # the two small numbers are those of the reference implementation: without any n-gram BLEU is 0, not an error
    tiny, small = 1e-15, 1e-9
    ratio = (length + tiny) / (reference_length + small)
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    scores, product = [], 1.0
    for n in range(4):
        product *= (correct[n] + tiny) / (guessed[n] + small)
        scores.append(product ** (1 / (n + 1)) * brevity)
    return scores


def rouge_l(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], *, tokenize: str | Tokenize = "auto"
) -> float:
    """Mean ROUGE-L (Lin 2004) with beta 1.2; the best precision and the best recall over the references."""
    pairs = zip(*_tokenize(hypotheses, references, tokenize), strict=True)
    return _mean([_rouge_l(*pair) for pair in pairs])


def cider(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], *, tokenize: str | Tokenize = "auto"
) -> float:
    """CIDEr (Vedantam et al., arXiv 1411.5726), times 10: mean cosine of tf-idf n-gram vectors, n = 1 ... 4.

    Document frequencies are those of the given references, so a single image scores 0. Words are not stemmed.
    """
    words, right = _tokenize(hypotheses, references, tokenize)
    return _mean(DocumentFrequencies(right).scores(words, right, d=False))


def cider_d(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], *, tokenize: str | Tokenize = "auto"
) -> float:
    """CIDEr-D, the variant that papers report: `cider` with clipped counts and a length penalty, sigma 6."""
    words, right = _tokenize(hypotheses, references, tokenize)
    return _mean(DocumentFrequencies(right).scores(words, right, d=True))


def exact_match(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], *, tokenize: str | Tokenize = "auto"
) -> float:
    """Fraction of the hypotheses that equal one of their references word for word."""
    words, right = _tokenize(hypotheses, references, tokenize)
    return _mean([caption in each for caption, each in zip(words, right, strict=True)])


def _bleu_counts(caption: Words, references: list[Words]) -> list[int]:
    """See `CaptionScores.bleu_counts`."""
    most: Counts = Counter()
    for reference in references:
        most |= ngrams(reference)
    correct, guessed = [0] * 4, [0] * 4
    for ngram, count in ngrams(caption).items():
        correct[len(ngram) - 1] += min(count, most[ngram])
        guessed[len(ngram) - 1] += count
    closest = min((abs(len(reference) - len(caption)), len(reference)) for reference in references)[1]
    return [*correct, *guessed, len(caption), closest]


def _rouge_l(caption: Words, references: list[Words], beta: float = 1.2) -> float:
    common = [_longest_common_subsequence(caption, reference) for reference in references]
    precision = max(common) / max(len(caption), 1)
    recall = max(c / max(len(reference), 1) for c, reference in zip(common, references, strict=True))
    if not (precision and recall):
        return 0.0
    return (1 + beta**2) * precision * recall / (recall + beta**2 * precision)


def _longest_common_subsequence(first: Words, second: Words) -> int:
    lengths = [0] * (len(second) + 1)
    for word in first:
        diagonal = 0
        for j, other in enumerate(second, start=1):
            above = lengths[j]
            lengths[j] = diagonal + 1 if word == other else max(above, lengths[j - 1])
            diagonal = above
    return lengths[-1]


def _mean(scores: Sequence[float]) -> float:
    return sum(scores) / len(scores)


def _column_sums(rows: Sequence[Sequence[int]]) -> list[int]:
    return [sum(column) for column in zip(*rows, strict=True)]


def _tokenize(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], tokenize: str | Tokenize
) -> tuple[list[Words], list[list[Words]]]:
    """Words of the hypotheses and of the references; ValueError unless each hypothesis has references."""
    if not hypotheses or len(hypotheses) != len(references):
        raise ValueError(
            f"There are {len(hypotheses)} hypotheses and {len(references)} lists of references: one list per "
            f"hypothesis and at least one hypothesis are required."
        )
    for index, right in enumerate(references):
        if isinstance(right, str) or not right:
            raise ValueError(
                f"references[{index}] is {right!r}; it takes a list with at least one caption, "
                f'[["a dog .", "the dog ."], ...].'
            )
    split = tokenize_by(tokenize)
    return [split(s) for s in hypotheses], [[split(s) for s in right] for right in references]
