"""Bootstrap intervals of metrics over images (Efron 1979; Koehn 2004 for captions and their differences).

A thousand times, as many images as the split has are drawn with replacement, each with its texts and captions; the
middle 95% of a metric over these draws is its interval. The retrieval gallery and the document frequencies of CIDEr-D
stay those of the whole split, so ranks and scores are computed once and a draw is a product of counts and scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from velm.evaluation.predictions import GeneratedCaption, Predictions
from velm.metrics.captioning import CaptionScores, bleu_from_counts
from velm.metrics.retrieval import RetrievalRanks

RESAMPLES = 1000
LEVEL = 0.95
BLOCK = 100  # resamples at a time; memory is this times the number of texts

Interval = tuple[float, float]
Draws = dict[str, np.ndarray]


def intervals(draws: Mapping[str, np.ndarray]) -> dict[str, Interval]:
    """The percentile interval of each metric, from its values over the draws."""
    return {name: _percentiles(values) for name, values in draws.items()}


def differences(first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]) -> dict[str, Interval]:
    """Intervals of second - first for the metrics of both; a draw has the same images for both."""
    return {
        name: _percentiles(second[name] - values)
        for name, values in first.items()
        if name in second and second[name].shape == values.shape
    }


def resample(
    predictions: Predictions,
    ranks: Mapping[str, RetrievalRanks],
    scores: CaptionScores | None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Draws:
    """Values of the metrics over the draws, float64 (resamples,) each, by the keys of metrics.json.

    Args:
        ranks: retrieval ranks by key prefix ('' or 'reranked/').
        seed: the same seed draws the same images for splits of the same size.
    """
    if resamples < 1:
        raise ValueError(f"resamples {resamples} is too small; it is at least 1.")
    draws: Draws = {}
    if predictions.retrieval is not None:
        owner = predictions.retrieval.image_ids.numpy()
        for prefix, each in ranks.items():
            draws |= {f"{prefix}{name}": values for name, values in _retrieval(each, owner, resamples, seed).items()}
    if predictions.captions is not None and scores is not None:
        draws |= _captions(predictions.captions.rows, scores, resamples, seed)
    return draws


def _percentiles(values: np.ndarray) -> Interval:
    low, high = np.percentile(values, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return float(low), float(high)


def _draws(images: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Counts of each image in each draw, float64 (<= BLOCK, images), block by block."""
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, BLOCK):
        size = min(BLOCK, resamples - start)
        yield rng.multinomial(images, np.full(images, 1 / images), size=size).astype(np.float64)


def _concatenate(blocks: Sequence[Draws]) -> Draws:
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def _retrieval(ranks: RetrievalRanks, owner: np.ndarray, resamples: int, seed: int) -> Draws:
    images = len(ranks.image_to_text)
    owners = {"image_to_text": np.arange(images), "text_to_image": owner}
    blocks = []
    for counts in _draws(images, resamples, seed):
        block: Draws = {}
        for way, rank in ranks._asdict().items():
            of, positions = owners[way], rank.numpy()
            queries = counts @ np.bincount(of, minlength=images)
            for k in (1, 5, 10):
                hits = np.bincount(of, weights=positions <= k, minlength=images)
                block[f"{way}/recall@{k}"] = counts @ hits / queries
            for name, each in {"mean_rank": positions, "mrr": 1 / positions}.items():
                block[f"{way}/{name}"] = counts @ np.bincount(of, weights=each, minlength=images) / queries
            block[f"{way}/median_rank"] = _median(positions, counts[:, of], queries)
        blocks.append(block)
    return _concatenate(blocks)


def _median(positions: np.ndarray, counts: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Lower median of ranks (q,) with multiplicities counts (R, q), which sum to queries (R,)."""
    order = positions.argsort(kind="stable")
    passed = counts[:, order].cumsum(axis=1) >= queries[:, None] / 2
    return positions[order][passed.argmax(axis=1)].astype(np.float64)


def _captions(captions: Sequence[GeneratedCaption], scores: CaptionScores, resamples: int, seed: int) -> Draws:
    numbers: dict[str, int] = {}
    owner = np.array([numbers.setdefault(row.image_id, len(numbers)) for row in captions])
    bleu_counts = np.array(scores.bleu_counts, dtype=np.float64)
    means = {
        "caption/rouge_l": np.array(scores.rouge_l),
        "caption/cider": np.array(scores.cider_d),
        "caption/exact_match": np.array(scores.exact, dtype=np.float64),
        "caption/length": bleu_counts[:, 8],
    }
    blocks = []
    for counts in _draws(len(numbers), resamples, seed):
        times = counts[:, owner]
        total = times.sum(axis=1)
        bleu = np.array([bleu_from_counts(row) for row in (times @ bleu_counts).tolist()])
        block = {f"caption/bleu{n}": bleu[:, n - 1] for n in range(1, 5)}
        blocks.append(block | {name: times @ values / total for name, values in means.items()})
    return _concatenate(blocks)
