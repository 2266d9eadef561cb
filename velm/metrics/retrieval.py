"""Retrieval: which sentence belongs to an image, and which image to a sentence.

One convention for everything here, with n images and m texts:

    image_embeds  float (n, E), one row an image
    text_embeds   float (m, E), one row a text
    image_ids     int   (m,),   image_ids[j] is the row of the image that text j describes

Scores are dot products (cosine similarity for L2-normalised rows). Any of its texts is right for an image.
Embeddings that come in pairs, an image repeated for each of its texts, go through `unique_images` first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = [
    "Recall",
    "RetrievalRanks",
    "figures_of_ranks",
    "recall_at_k",
    "retrieval_metrics",
    "retrieval_ranks",
    "unique_images",
    "unique_pictures",
]


class Recall(NamedTuple):
    """Shares of the queries, in [0, 1], that find what they look for among the first k."""

    image_to_text: float
    text_to_image: float


class RetrievalRanks(NamedTuple):
    """Rank of the best right answer to each query, from 1: int64 (n,) for images, (m,) for texts."""

    image_to_text: Tensor
    text_to_image: Tensor


def unique_images(image_embeds: Any, image_ids: Any) -> tuple[Tensor, Tensor]:
    """From a row a pair to a row an image.

    Args:
        image_embeds: float (m, E), row j the image of text j.
        image_ids: int (m,), equal where the image is the same; any numbers.

    Returns:
        the first row of each image, float (n, E), and int64 (m,), its row for each text.
    """
    embeds, ids = torch.as_tensor(image_embeds), torch.as_tensor(image_ids)
    if len(embeds) != len(ids):
        raise ValueError(f"image_embeds has {len(embeds)} rows and image_ids {len(ids)}: it takes one a pair.")
    values, rows = ids.unique(return_inverse=True)
    first = torch.full_like(values, len(ids)).scatter_reduce(0, rows, torch.arange(len(ids)).to(rows), "amin")
    return embeds[first.to(embeds.device)], rows


def retrieval_ranks(image_embeds: Any, text_embeds: Any, image_ids: Any, *, block_size: int = 1024) -> RetrievalRanks:
    """Rank of the best right answer to every query, counted in blocks of matrix products.

    rank = 1 + the number of wrong candidates that score at least as high as the best right one. A tie is
    decided against the model (as is nan), so that embeddings collapsed to one point find nothing.

    Args:
        image_embeds, text_embeds, image_ids: as at the head of this file; tensors, arrays or lists.
        block_size: queries scored at a time; memory is block_size times the number of candidates.
    """
    image, text, ids = _check(image_embeds, text_embeds, image_ids)
    order = ids.argsort(stable=True)
    to_text = _image_ranks(image, text[order], ids[order], block_size)
    to_image = [
        # its own image is among what is not below it: the count starts at 1
        _not_below(scores, scores.gather(1, own[:, None]))
        for own, scores in (
            (ids[start : start + block_size], text[start : start + block_size] @ image.T)
            for start in range(0, len(text), block_size)
        )
    ]
    return RetrievalRanks(to_text, torch.cat(to_image))


def _not_below(scores: Tensor, best: Tensor) -> Tensor:
    """How many of a row's scores are not below its `best` (rows, 1), int64 (rows,); the scores are written over."""
    exact = torch.float32 if scores.shape[1] < 2**24 else torch.float64  # ones are added up
    return scores.shape[1] - torch.lt(scores, best, out=scores).sum(1, dtype=exact).long()


def _image_ranks(image: Tensor, text: Tensor, ids: Tensor, block_size: int) -> Tensor:
    """The ranks of images; texts are in the order of their images, so that a block's are neighbours."""
    bounds = torch.searchsorted(ids, torch.arange(0, len(image) + block_size, block_size).to(ids)).tolist()
    ranks = []
    for start, low, high in zip(range(0, len(image), block_size), bounds, bounds[1:], strict=False):
        scores = image[start : start + block_size] @ text.T
        row = ids[low:high] - start
        right = scores[row, torch.arange(low, high).to(ids)]
        best = scores.new_full((len(scores),), -torch.inf).scatter_reduce(0, row, right, "amax")
        not_below = _not_below(scores, best[:, None])
        of_its_own = torch.zeros_like(not_below).index_add(0, row, (~(right < best[row])).to(not_below))
        ranks.append(1 + not_below - of_its_own)
    return torch.cat(ranks)


def recall_at_k(image_embeds: Any, text_embeds: Any, image_ids: Any, k: int) -> Recall:
    """Share of the queries with a right answer among the k best, both ways; ties count against the model.

    Args:
        image_embeds, text_embeds, image_ids: as at the head of this file.
        k: number of answers looked at, >= 1.
    """
    if k < 1:
        raise ValueError(f"k {k} is below 1: it is a number of answers.")
    ranks = retrieval_ranks(image_embeds, text_embeds, image_ids)
    return Recall(*(_share(rank <= k) for rank in ranks))


def retrieval_metrics(
    image_embeds: Any, text_embeds: Any, image_ids: Any, ks: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """Recall at every k, median and mean rank and mean reciprocal rank, under the names of metrics.json.

    Ranks are in places from 1 (the median is the lower of the two in the middle) and better when small; `mrr`, the
    mean of 1 / rank (Voorhees 1999, TREC-8), is in (0, 1].
    """
    return figures_of_ranks(retrieval_ranks(image_embeds, text_embeds, image_ids), ks)


def figures_of_ranks(ranks: RetrievalRanks, ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """As `retrieval_metrics`, of ranks that are known already."""
    figures: dict[str, float] = {}
    for direction, rank in ranks._asdict().items():
        figures |= {f"{direction}/recall@{k}": _share(rank <= k) for k in ks}
        figures[f"{direction}/median_rank"] = float(rank.median())
        figures[f"{direction}/mean_rank"] = float(rank.double().mean())
        figures[f"{direction}/mrr"] = float(rank.double().reciprocal().mean())
    return figures


def _share(hits: Tensor) -> float:
    return int(hits.sum()) / len(hits)


def _check(image_embeds: Any, text_embeds: Any, image_ids: Any) -> tuple[Tensor, Tensor, Tensor]:
    image, text = torch.as_tensor(image_embeds).detach(), torch.as_tensor(text_embeds).detach()
    image, text = (e if e.dtype == torch.float64 else e.float() for e in (image, text))
    ids = torch.as_tensor(image_ids).to(image.device)
    if image.dim() != 2 or text.dim() != 2 or image.shape[1] != text.shape[1]:
        raise ValueError(
            f"image_embeds {tuple(image.shape)} and text_embeds {tuple(text.shape)} are to be (n, E) and (m, E)."
        )
    if ids.is_floating_point() or ids.shape != (len(text),):
        raise ValueError(
            f"image_ids is {ids.dtype} {tuple(ids.shape)}; it takes an integer for each of the {len(text)} texts."
        )
    if not len(text) or not len(image):
        raise ValueError(f"Nothing to retrieve: {len(image)} images, {len(text)} texts.")
    pairs = "If image_embeds has a row a pair, hand it through velm.metrics.unique_images first."
    if ids.min() < 0 or ids.max() >= len(image):
        raise ValueError(
            f"image_ids runs from {int(ids.min())} to {int(ids.max())}, but image_embeds has rows 0 to "
            f"{len(image) - 1}. {pairs}"
        )
    without = len(image) - len(ids.unique())
    if without:
        raise ValueError(f"{without} of {len(image)} images have no text, so nothing could be found. {pairs}")
    return image, text.to(image), ids.long()


unique_pictures = unique_images  # the public name in `velm.metrics`
