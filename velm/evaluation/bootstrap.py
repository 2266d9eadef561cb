"""How sure the figures are: the bootstrap over images (Efron 1979; Koehn 2004 for captions and their differences).

A split is a sample of the images there could have been. Draw as many of its images again, with replacement, a
thousand times; the middle 95% of a figure over these draws is its interval. An image brings its sentences and its
captions with it. The gallery of retrieval and the document frequencies of CIDEr-D stay those of the whole split, so
that ranks and scores need finding once only, and a draw is a product of counts and scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from velm.evaluation.predictions import Predictions, Written
from velm.evaluation.scores import CaptionScores, bleu_of_counts
from velm.metrics.retrieval import RetrievalRanks

__all__ = ["RESAMPLES", "Interval", "differences", "intervals", "resampled"]

RESAMPLES = 1000
LEVEL = 0.95
BLOCK = 100  # resamples at a time; memory is this times the number of texts

Interval = tuple[float, float]
Draws = dict[str, np.ndarray]


def intervals(draws: Mapping[str, np.ndarray]) -> dict[str, Interval]:
    """The percentile interval of every figure, from its values over the draws."""
    return {name: _percentiles(values) for name, values in draws.items()}


def differences(first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]) -> dict[str, Interval]:
    """Intervals of second - first for the figures of both, draw by draw: both saw the same images in each."""
    return {
        name: _percentiles(second[name] - values)
        for name, values in first.items()
        if name in second and second[name].shape == values.shape
    }


def resampled(
    predictions: Predictions,
    ranks: Mapping[str, RetrievalRanks],
    scores: CaptionScores | None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Draws:
    """The values of the figures over the draws, float64 (resamples,) each, by the names of metrics.json.

    Args:
        predictions: of the split.
        ranks: what goes before the names of figures ('' or 'reranked/'), and the ranks they are made of.
        scores: of `predictions.written`; None where nothing was written.
        resamples: draws.
        seed: the same seed draws the same images of splits of the same size.
    """
    if resamples < 1:
        raise ValueError(f"resamples {resamples} is too small; it is at least 1.")
    found: Draws = {}
    if predictions.image_ids is not None:
        owner = predictions.image_ids.numpy()
        for prefix, of in ranks.items():
            found |= {f"{prefix}{name}": values for name, values in _retrieval(of, owner, resamples, seed).items()}
    if predictions.written is not None and scores is not None:
        found |= _captions(predictions.written, scores, resamples, seed)
    return found


def _percentiles(values: np.ndarray) -> Interval:
    low, high = np.percentile(values, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return float(low), float(high)


def _draws(images: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each image is drawn, float64 (<= BLOCK, images), block by block."""
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, BLOCK):
        size = min(BLOCK, resamples - start)
        yield rng.multinomial(images, np.full(images, 1 / images), size=size).astype(np.float64)


def _joined(blocks: Sequence[Draws]) -> Draws:
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def _retrieval(ranks: RetrievalRanks, owner: np.ndarray, resamples: int, seed: int) -> Draws:
    images = len(ranks.image_to_text)
    owners = {"image_to_text": np.arange(images), "text_to_image": owner}
    blocks = []
    for counts in _draws(images, resamples, seed):
        block: Draws = {}
        for way, rank in ranks._asdict().items():
            of, places = owners[way], rank.numpy()
            queries = counts @ np.bincount(of, minlength=images)
            for k in (1, 5, 10):
                hits = np.bincount(of, weights=places <= k, minlength=images)
                block[f"{way}/recall@{k}"] = counts @ hits / queries
            for name, each in {"mean_rank": places, "mrr": 1 / places}.items():
                block[f"{way}/{name}"] = counts @ np.bincount(of, weights=each, minlength=images) / queries
            block[f"{way}/median_rank"] = _median(places, counts[:, of], queries)
        blocks.append(block)
    return _joined(blocks)


def _median(places: np.ndarray, counts: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Lower median of places (q,) that come so many times, counts (R, q) with the sums queries (R,)."""
    order = places.argsort(kind="stable")
    passed = counts[:, order].cumsum(axis=1) >= queries[:, None] / 2
    return places[order][passed.argmax(axis=1)].astype(np.float64)


def _captions(written: Sequence[Written], scores: CaptionScores, resamples: int, seed: int) -> Draws:
    numbers: dict[str, int] = {}
    owner = np.array([numbers.setdefault(row.image_id, len(numbers)) for row in written])
    means = {
        "caption/rouge_l": scores.rouge_l,
        "caption/cider": scores.cider,
        "caption/exact_match": scores.exact,
        "caption/length": scores.length,
    }
    blocks = []
    for counts in _draws(len(numbers), resamples, seed):
        times = counts[:, owner]
        captions = times.sum(axis=1)
        bleu = bleu_of_counts(times @ scores.bleu)
        block = {f"caption/bleu{n}": bleu[:, n - 1] for n in range(1, 5)}
        blocks.append(block | {name: times @ values / captions for name, values in means.items()})
    return _joined(blocks)
