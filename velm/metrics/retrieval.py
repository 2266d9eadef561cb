"""Retrieval metrics of embeddings: ranks, recall at k, means over folds; and the effective rank of embeddings.

Conventions of all functions, for n images and m texts:

    image_embeds  float (n, E), one row per image
    text_embeds   float (m, E), one row per text
    image_ids     int   (m,),   image_ids[j] is the row of the image that text j describes

Scores are dot products (cosine similarity for L2-normalised rows). An image matches all of its texts.
For embeddings in pairs, an image repeated for each of its texts, call `unique_images` first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = [
    "Recall",
    "RetrievalRanks",
    "check_folds",
    "effective_rank",
    "figures_of_ranks",
    "fold_metrics",
    "rank_metrics",
    "recall_at_k",
    "retrieval_metrics",
    "retrieval_ranks",
    "unique_images",
    "unique_pictures",
]

CACHED_ROWS = 32
"""Rows of scores that are compared at a time, so that they stay in the cache for all three counts."""


class Recall(NamedTuple):
    """Fractions of the queries, in [0, 1], with a match among the first k."""

    image_to_text: float
    text_to_image: float


class RetrievalRanks(NamedTuple):
    """Rank of the best match of each query, from 1: int64 (n,) for images, (m,) for texts."""

    image_to_text: Tensor
    text_to_image: Tensor


def unique_images(image_embeds: Any, image_ids: Any) -> tuple[Tensor, Tensor]:
    """Convert one row per pair to one row per image.

    Args:
        image_embeds: float (m, E), row j the image of text j.
        image_ids: int (m,), any numbers; equal for the same image.

    Returns:
        the first row of each image in the order of the ids, float (n, E), and int64 (m,), its row for each text.
    """
    embeds, ids = torch.as_tensor(image_embeds), torch.as_tensor(image_ids)
    if len(embeds) != len(ids):
        raise ValueError(f"image_embeds has {len(embeds)} rows and image_ids {len(ids)}: one per pair is required.")
    values, rows = ids.unique(return_inverse=True)
    first = torch.full_like(values, len(ids)).scatter_reduce(0, rows, torch.arange(len(ids)).to(rows), "amin")
    return embeds[first.to(embeds.device)], rows


def retrieval_ranks(image_embeds: Any, text_embeds: Any, image_ids: Any, *, block_size: int = 512) -> RetrievalRanks:
    """Rank of the best match of every query, counted in blocks of one matrix product, for both directions.

    rank = 1 + the number of wrong candidates that score at least as high as the best match. Ties and nan count
    against the model, so that embeddings collapsed to one point have recall 0.

    Args:
        image_embeds, text_embeds, image_ids: see the module docstring; tensors, arrays or lists.
        block_size: queries scored at a time; memory is block_size times the number of texts.
    """
    image, text, ids = _check(image_embeds, text_embeds, image_ids)
    order = ids.argsort(stable=True)
    to_text, sorted_ranks, close = _ranks_of_one_product(image, text[order], ids[order], block_size)
    to_image = torch.empty_like(sorted_ranks).scatter(0, order, sorted_ranks)
    close = order[close]
    if len(close):
        to_image[close] = _text_ranks(image, text[close], ids[close], block_size)
    return RetrievalRanks(to_text, to_image)


def _not_below(scores: Tensor, best: Tensor, dim: int, buffer: Tensor) -> Tensor:
    """Count along `dim` the scores not below `best`, int64; overwrites the buffer, as large or larger."""
    exact = torch.float32 if scores.shape[dim] < 2**24 else torch.float64  # of the sum of ones
    below = torch.lt(scores, best, out=buffer[: len(scores)])
    return scores.shape[dim] - below.sum(dim, dtype=exact).long()


def _text_ranks(image: Tensor, text: Tensor, ids: Tensor, block_size: int) -> Tensor:
    """Ranks of texts; a text's own image is not below itself, so the count starts at 1."""
    ranks = []
    for own, part in zip(ids.split(block_size), text.split(block_size), strict=True):
        scores = part @ image.T
        ranks.append(_not_below(scores, scores.gather(1, own[:, None]), 1, scores))
    return torch.cat(ranks)


def _ranks_of_one_product(image: Tensor, text: Tensor, ids: Tensor, block_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ranks of images and of texts, from the scores of a block of images with all texts.

    A text's score with its own image is known here only up to rounding, since most of its scores stand in other blocks
    than that one. Its rank holds where it is the same for the score plus and minus a margin; the others are returned to
    be counted by `_text_ranks`, texts whose score differs by half a margin in the product too: TF32, for instance.

    Args:
        text: sorted by image, so that the texts of a block of images are contiguous.

    Returns:
        ranks of images, int64 (n,), ranks of texts, int64 (m,), and the texts whose rank is open, int64 (k,).
    """
    bounds = torch.searchsorted(ids, torch.arange(0, len(image) + block_size, block_size).to(ids)).tolist()
    pairs = zip(ids.split(block_size), text.split(block_size), strict=True)
    right = torch.cat([torch.linalg.vecdot(image[own], part) for own, part in pairs])
    error = 4 * image.shape[1] ** 0.5 * torch.finfo(image.dtype).eps  # several times that of a sum of random signs
    margin = error * text.norm(dim=1) * image.norm(dim=1).amax()
    at_least, at_most = torch.ones_like(ids), torch.zeros_like(ids)
    found, ranks = torch.empty_like(right), []
    buffer = image.new_empty(min(block_size, len(image)), len(text))  # fresh memory for each block takes 7% longer
    small = torch.empty_like(buffer[:CACHED_ROWS])
    for start, low, high in zip(range(0, len(image), block_size), bounds, bounds[1:], strict=False):
        part = image[start : start + block_size]
        scores = torch.mm(part, text.T, out=buffer[: len(part)])
        row = ids[low:high] - start
        own = found[low:high] = scores[row, torch.arange(low, high).to(ids)]
        best = scores.new_full((len(scores),), -torch.inf).scatter_reduce(0, row, own, "amax")
        of_its_own = torch.zeros(len(scores), dtype=ids.dtype).to(ids).index_add(0, row, (~(own < best[row])).long())
        not_below = []
        for rows, top in zip(scores.split(CACHED_ROWS), best[:, None].split(CACHED_ROWS), strict=True):
            at_least += _not_below(rows, right + margin, 0, small)
            at_most += _not_below(rows, right - margin, 0, small)
            not_below.append(_not_below(rows, top, 1, small))
        ranks.append(1 + torch.cat(not_below) - of_its_own)
    close = (at_least != at_most) | ~((found - right).abs() <= margin / 2)
    return torch.cat(ranks), at_most, close.nonzero().squeeze(1)


def recall_at_k(image_embeds: Any, text_embeds: Any, image_ids: Any, k: int) -> Recall:
    """Fraction of the queries with a match among the k best, in both directions; ties count against the model.

    Args:
        image_embeds, text_embeds, image_ids: see the module docstring.
        k: number of candidates, >= 1.
    """
    if k < 1:
        raise ValueError(f"k {k} is below 1: it is a number of candidates.")
    ranks = retrieval_ranks(image_embeds, text_embeds, image_ids)
    return Recall(*(_share(rank <= k) for rank in ranks))


def retrieval_metrics(
    image_embeds: Any, text_embeds: Any, image_ids: Any, ks: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """Recall at every k, median and mean rank and mean reciprocal rank (`mrr`), by the keys of metrics.json.

    Ranks start at 1; the median is the lower of the two middle ranks. `mrr`, the mean of 1 / rank (Voorhees 1999,
    TREC-8), is in (0, 1].
    """
    return rank_metrics(retrieval_ranks(image_embeds, text_embeds, image_ids), ks)


def rank_metrics(ranks: RetrievalRanks, ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """The metrics of `retrieval_metrics` from given ranks."""
    metrics: dict[str, float] = {}
    for direction, rank in ranks._asdict().items():
        metrics |= {f"{direction}/recall@{k}": _share(rank <= k) for k in ks}
        metrics[f"{direction}/median_rank"] = float(rank.median())
        metrics[f"{direction}/mean_rank"] = float(rank.double().mean())
        metrics[f"{direction}/mrr"] = float(rank.double().reciprocal().mean())
    return metrics


def fold_metrics(
    image_embeds: Any, text_embeds: Any, image_ids: Any, *, folds: int = 5, ks: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """Mean of `retrieval_metrics` over folds of consecutive images with their texts.

    Karpathy and Fei-Fei 2015 (arXiv 1412.2306) report MS-COCO on "1K" images, the mean over five folds of the 5,000
    test images, and on all "5K". A larger gallery is harder: the two are not comparable.

    Args:
        image_embeds, text_embeds, image_ids: see the module docstring.
        folds: number of folds of equal size, >= 1; up to `folds` - 1 images at the end are in none.
        ks: numbers of candidates.
    """
    image, text, ids = (torch.as_tensor(each) for each in (image_embeds, text_embeds, image_ids))
    check_folds(folds, len(image))
    size = len(image) // folds
    metrics = []
    for start in range(0, folds * size, size):
        own = ((ids >= start) & (ids < start + size)).to(text.device)
        metrics.append(retrieval_metrics(image[start : start + size], text[own], ids[own.to(ids.device)] - start, ks))
    return {name: sum(fold[name] for fold in metrics) / folds for name in metrics[0]}


def check_folds(folds: int, images: int) -> None:
    """Raise ValueError unless 1 <= folds <= images."""
    if not 1 <= folds <= images:
        raise ValueError(f"folds {folds} of {images} images: folds is between 1 and the number of images.")


def effective_rank(embeds: Tensor) -> float:
    """Number of directions that embeddings use (Roy and Vetterli 2007, equation 3); a collapse lowers it before recall.

    exp of the entropy of the normalised singular values: 1 if all embeddings are parallel, min(n, E) if all directions
    are used equally. Embeddings are not centred (as in RankMe, arXiv 2210.02885): noise around one point is a collapse.

    Args:
        embeds: float (n, E), not all zero.
    """
    wide = embeds.detach().double()
    small = wide @ wide.T if len(wide) < wide.shape[1] else wide.T @ wide
    singular = torch.linalg.eigvalsh(small).clamp(min=0).sqrt()
    share = singular / singular.sum()
    return float(torch.special.entr(share).sum().exp())


def _share(hits: Tensor) -> float:
    return int(hits.sum()) / len(hits)


def _check(image_embeds: Any, text_embeds: Any, image_ids: Any) -> tuple[Tensor, Tensor, Tensor]:
    image, text = torch.as_tensor(image_embeds).detach(), torch.as_tensor(text_embeds).detach()
    image, text = (e if e.dtype == torch.float64 else e.float() for e in (image, text))
    ids = torch.as_tensor(image_ids).to(image.device)
    if image.dim() != 2 or text.dim() != 2 or image.shape[1] != text.shape[1]:
        raise ValueError(
            f"image_embeds {tuple(image.shape)} and text_embeds {tuple(text.shape)} must be (n, E) and (m, E)."
        )
    if ids.is_floating_point() or ids.shape != (len(text),):
        raise ValueError(
            f"image_ids is {ids.dtype} {tuple(ids.shape)}; an integer for each of the {len(text)} texts is required."
        )
    if not len(text) or not len(image):
        raise ValueError(f"Nothing to retrieve: {len(image)} images, {len(text)} texts.")
    pairs = "If image_embeds has one row per pair, call velm.metrics.unique_images first."
    if ids.min() < 0 or ids.max() >= len(image):
        raise ValueError(
            f"image_ids runs from {int(ids.min())} to {int(ids.max())}, but image_embeds has rows 0 to "
            f"{len(image) - 1}. {pairs}"
        )
    without = len(image) - len(ids.unique())
    if without:
        raise ValueError(f"{without} of {len(image)} images have no text, so they have no rank. {pairs}")
    return image, text.to(image), ids.long()


# earlier public names
unique_pictures = unique_images
figures_of_ranks = rank_metrics
