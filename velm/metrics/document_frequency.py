"""CIDEr and CIDEr-D of captions that are split into words, with the document frequencies of any set of images."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

__all__ = ["Counts", "DocumentFrequencies", "Words", "ngrams"]

Words = list[str]
Counts = Counter[tuple[str, ...]]


class DocumentFrequencies:
    """In how many images each n-gram occurs, n = 1 ... 4, and scores of captions with these frequencies.

    Vedantam et al., arXiv 1411.5726.

    Args:
        references: the reference captions of each image; read once.

    Attributes:
        images: their number.
    """

    def __init__(self, references: Iterable[Sequence[Words]]) -> None:
        frequency: Counts = Counter()
        self.images = 0
        for of_image in references:
            frequency.update({ngram for reference in of_image for ngram in ngrams(reference)})
            self.images += 1
        # an n-gram of no image weighs as much as one of one image: these are most, and need not be stored
        self.frequency: Counts = Counter({ngram: count for ngram, count in frequency.items() if count > 1})

    def scores(self, captions: Sequence[Words], references: Sequence[Sequence[Words]], *, d: bool) -> list[float]:
        """CIDEr, or CIDEr-D with `d`, of each caption with its own references, in [0, 10].

        Args:
            captions: (k,); adjacent captions with the same list of references share its vectors.
            references: (k,), at least one of each caption.
            d: clip counts at the reference's and penalise a difference in length.
        """
        scores: list[float] = []
        log_images = math.log(max(self.images, 1))
        last: Sequence[Words] | None = None
        theirs: list[_Vectors] = []
        for caption, right in zip(captions, references, strict=True):
            if right is not last:
                last, theirs = right, [_Vectors(reference, self.frequency, log_images) for reference in right]
            ours = _Vectors(caption, self.frequency, log_images)
            scores.append(10 * sum(ours.similarity(vectors, d) for vectors in theirs) / len(right))
        return scores


class _Vectors:
    """The tf-idf vectors of one caption, for n = 1 ... 4."""

    def __init__(self, caption: Words, frequency: Counts, log_images: float) -> None:
        self.length = len(caption)
        self.weights: list[dict[tuple[str, ...], float]] = [{}, {}, {}, {}]
        for ngram, count in ngrams(caption).items():
            idf = log_images - math.log(max(1, frequency[ngram]))
            self.weights[len(ngram) - 1][ngram] = count * idf
        self.norms = [math.sqrt(sum(w * w for w in weights.values())) for weights in self.weights]

    def similarity(self, reference: _Vectors, d: bool, sigma: float = 6.0) -> float:
        """Mean over n of the cosine; with `d`, weights are clipped at the reference's and lengths penalised."""
        total = 0.0
        for n in range(4):
            theirs = reference.weights[n]
            shared = ((w, theirs[ngram]) for ngram, w in self.weights[n].items() if ngram in theirs)
            dot = sum((min(ours, their) if d else ours) * their for ours, their in shared)
            norm = self.norms[n] * reference.norms[n]
            total += dot / norm if norm else dot
        # the reference implementation measures lengths in bigrams; an empty caption has none
        difference = max(self.length - 1, 0) - max(reference.length - 1, 0)
        return total / 4 * (math.exp(-(difference**2) / (2 * sigma**2)) if d else 1.0)


def ngrams(words: Words) -> Counts:
    """How often each n-gram occurs in a caption, n = 1 ... 4."""
    return Counter(tuple(words[i : i + n]) for n in range(1, 5) for i in range(len(words) - n + 1))
