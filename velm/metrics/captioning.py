"""Caption metrics: BLEU, ROUGE-L, CIDEr and CIDEr-D without Java, equal to pycocoevalcap's.

hypotheses: list[str], one sentence an image; references: list[list[str]], the right sentences of each.
Sentences are cut into words by `tokenize`, which is `ptb_tokenize` as in the field; `str.split` takes them as
they are. Figures of a corpus are in [0, 1], CIDEr and CIDEr-D in [0, 10]: the field's "CIDEr 57" is 0.57.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

from velm.metrics.diversity import diversity_of_words
from velm.metrics.ptb import ptb_tokenize

__all__ = [
    "bleu",
    "bleu_counts",
    "caption_metrics",
    "cider",
    "cider_d",
    "cider_scores",
    "exact_match",
    "rouge_l",
]

Words = list[str]
Tokenize = Callable[[str], Words]
Counts = Counter[tuple[str, ...]]


def caption_metrics(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], *, tokenize: Tokenize = ptb_tokenize
) -> dict[str, float]:
    """Everything below and `velm.metrics.diversity`, under the names of metrics.json; `caption/cider` is CIDEr-D."""
    words, right = _words(hypotheses, references, tokenize)
    figures = {f"caption/bleu{n}": score for n, score in enumerate(_bleu(words, right), start=1)}
    return figures | {
        "caption/rouge_l": _rouge_l(words, right),
        "caption/cider": _cider(words, right, d=True),
        "caption/exact_match": _exact_match(words, right),
        **diversity_of_words(words),
    }


def bleu(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], *, tokenize: Tokenize = ptb_tokenize
) -> list[float]:
    """BLEU-1 to BLEU-4 of the corpus (Papineni et al., 2002), with the closest reference length."""
    return _bleu(*_words(hypotheses, references, tokenize))


def bleu_counts(sentence: Words, references: list[Words]) -> list[int]:
    """What one caption adds to BLEU, in words already cut; the sums over a corpus are what BLEU is taken of.

    Returns:
        ten numbers: n-grams that are right (n = 1 ... 4), n-grams written, words written, words of the reference
        closest in length, of two equally near the shorter.
    """
    most: Counts = Counter()
    for reference in references:
        most |= _ngrams(reference)
    correct, guessed = [0] * 4, [0] * 4
    for ngram, count in _ngrams(sentence).items():
        correct[len(ngram) - 1] += min(count, most[ngram])
        guessed[len(ngram) - 1] += count
    closest = min((abs(len(reference) - len(sentence)), len(reference)) for reference in references)[1]
    return [*correct, *guessed, len(sentence), closest]


def _bleu(words: list[Words], references: list[list[Words]]) -> list[float]:
    counts = [bleu_counts(sentence, right) for sentence, right in zip(words, references, strict=True)]
    *ngrams, length, reference_length = map(sum, zip(*counts, strict=True))
    correct, guessed = ngrams[:4], ngrams[4:]
    # the two small numbers are those of the reference implementation: no n-gram at all gives 0 and not an error
    tiny, small = 1e-15, 1e-9
    ratio = (length + tiny) / (reference_length + small)
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    scores, product = [], 1.0
    for n in range(4):
        product *= (correct[n] + tiny) / (guessed[n] + small)
        scores.append(product ** (1 / (n + 1)) * brevity)
    return scores


def rouge_l(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], *, tokenize: Tokenize = ptb_tokenize
) -> float:
    """Mean ROUGE-L (Lin, 2004) with beta 1.2; best precision and best recall over the references."""
    return _rouge_l(*_words(hypotheses, references, tokenize))


def _rouge_l(words: list[Words], references: list[list[Words]], beta: float = 1.2) -> float:
    total = 0.0
    for sentence, right in zip(words, references, strict=True):
        common = [_longest_common_subsequence(sentence, reference) for reference in right]
        precision = max(common) / max(len(sentence), 1)
        recall = max(c / max(len(reference), 1) for c, reference in zip(common, right, strict=True))
        if precision and recall:
            total += (1 + beta**2) * precision * recall / (recall + beta**2 * precision)
    return total / len(words)


def _longest_common_subsequence(first: Words, second: Words) -> int:
    lengths = [0] * (len(second) + 1)
    for word in first:
        diagonal = 0
        for j, other in enumerate(second, start=1):
            above = lengths[j]
            lengths[j] = diagonal + 1 if word == other else max(above, lengths[j - 1])
            diagonal = above
    return lengths[-1]


def cider(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], *, tokenize: Tokenize = ptb_tokenize
) -> float:
    """CIDEr (Vedantam et al., arXiv 1411.5726), times 10: mean cosine of tf-idf n-gram vectors, n = 1 ... 4.

    The document frequencies are those of these references; one image alone therefore scores 0. Words are
    not stemmed.
    """
    return _cider(*_words(hypotheses, references, tokenize), d=False)


def cider_d(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], *, tokenize: Tokenize = ptb_tokenize
) -> float:
    """CIDEr-D, the field's figure: `cider` with clipped counts and a penalty on lengths, sigma 6."""
    return _cider(*_words(hypotheses, references, tokenize), d=True)


class _Vectors:
    """The tf-idf vectors of one sentence, for n = 1 ... 4; document frequencies are of the references."""

    def __init__(self, sentence: Words, frequency: Counts, log_images: float) -> None:
        self.length = len(sentence)
        self.weights: list[dict[tuple[str, ...], float]] = [{}, {}, {}, {}]
        for ngram, count in _ngrams(sentence).items():
            idf = log_images - math.log(max(1, frequency[ngram]))
            self.weights[len(ngram) - 1][ngram] = count * idf
        self.norms = [math.sqrt(sum(w * w for w in weights.values())) for weights in self.weights]

    def similarity(self, reference: _Vectors, d: bool, sigma: float = 6.0) -> float:
        """The mean over n of the cosine; with `d`, clipped at the reference and penalised for its length."""
        total = 0.0
        for n in range(4):
            theirs = reference.weights[n]
            shared = ((w, theirs[ngram]) for ngram, w in self.weights[n].items() if ngram in theirs)
            dot = sum((min(ours, their) if d else ours) * their for ours, their in shared)
            norm = self.norms[n] * reference.norms[n]
            total += dot / norm if norm else dot
        # the reference implementation measures lengths in pairs of words; an empty sentence has none either
        difference = max(self.length - 1, 0) - max(reference.length - 1, 0)
        return total / 4 * (math.exp(-(difference**2) / (2 * sigma**2)) if d else 1.0)


def cider_scores(words: list[Words], references: list[list[Words]], *, d: bool) -> list[float]:
    """CIDEr, or with `d` CIDEr-D, of each caption, in words already cut; document frequencies are of all references."""
    frequency: Counts = Counter()
    for right in references:
        frequency.update({ngram for reference in right for ngram in _ngrams(reference)})
    log_images = math.log(len(words))
    scores = []
    for sentence, right in zip(words, references, strict=True):
        ours = _Vectors(sentence, frequency, log_images)
        theirs = (_Vectors(reference, frequency, log_images) for reference in right)
        scores.append(10 * sum(ours.similarity(vectors, d) for vectors in theirs) / len(right))
    return scores


def _cider(words: list[Words], references: list[list[Words]], d: bool) -> float:
    return sum(cider_scores(words, references, d=d)) / len(words)


def exact_match(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], *, tokenize: Tokenize = ptb_tokenize
) -> float:
    """Share of the hypotheses that are, word for word, one of their references."""
    return _exact_match(*_words(hypotheses, references, tokenize))


def _exact_match(words: list[Words], references: list[list[Words]]) -> float:
    return sum(sentence in right for sentence, right in zip(words, references, strict=True)) / len(words)


def _ngrams(words: Words) -> Counts:
    return Counter(tuple(words[i : i + n]) for n in range(1, 5) for i in range(len(words) - n + 1))


def _words(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], tokenize: Tokenize
) -> tuple[list[Words], list[list[Words]]]:
    """Both sides cut into words, after a look at their shape."""
    if not hypotheses or len(hypotheses) != len(references):
        raise ValueError(
            f"There are {len(hypotheses)} hypotheses and {len(references)} lists of references: "
            f"it takes one list a hypothesis, and at least one."
        )
    for index, right in enumerate(references):
        if isinstance(right, str) or not right:
            raise ValueError(
                f"references[{index}] is {right!r}; it takes a list with at least one sentence, "
                f'[["a dog .", "the dog ."], ...].'
            )
    return [tokenize(s) for s in hypotheses], [[tokenize(s) for s in right] for right in references]
