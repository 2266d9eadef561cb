"""VSE++'s hinges in one walk. The hardest negatives are few, so that their gradient needs no matrix product."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from velm.losses.tiled.peers import Peers
from velm.losses.tiled.walk import Walk

__all__ = ["triplet_all", "triplet_hardest"]

Result = tuple[Tensor, tuple[Tensor | None, ...]]


def triplet_hardest(
    image: Tensor, text: Tensor, *, margin: float, ids: Tensor, group: object = None, wanted: tuple[bool, ...]
) -> Result:
    """`velm.losses.TripletLoss(hardest=True)` and its gradients; of equally hard negatives the first counts.

    Args:
        image: float (b, E), this rank's.
        text: float (b, E), this rank's.
        margin: as there.
        ids: int (b,), this rank's.
        group: the process group whose ranks hold the batch between them; None if this is all of it.
        wanted: for which of image and text a gradient is made.

    Returns:
        The loss of the whole batch, float (); and its gradients, summed over the ranks' losses.
    """
    peers = Peers(group)  # type: ignore[arg-type]
    texts, all_ids, match = peers.gather(text), peers.gather(ids), torch.einsum("be,be->b", image, text)
    matches = peers.gather(match)
    walk, total, b = Walk(image, texts, ids, all_ids), len(all_ids), len(image)
    (row_peak, row_at), (column_peak, column_at) = _hardest(walk)
    peak = peers.max(column_peak)
    # the first of the rows that are equally hard, wherever it is
    owner = torch.where((column_peak == peak) & (column_at >= 0), column_at + peers.rank * b, total)
    owner = peers.min(owner) - peers.rank * b
    row_cost = (margin + row_peak - match).clamp_(min=0)
    column_cost = (margin + peak - matches).clamp_(min=0)
    value = (peers.sum(row_cost.sum()) + column_cost.sum()) / total
    if not any(wanted):
        return value, (None, None)
    d_image, d_texts = torch.zeros_like(image), torch.zeros_like(texts)
    i = (row_cost > 0).nonzero().flatten()
    j = ((column_cost > 0) & (owner >= 0) & (owner < b)).nonzero().flatten()
    for images, sentences in ((i, row_at[i]), (owner[j], j)):
        d_image.index_add_(0, images, texts[sentences])
        d_texts.index_add_(0, sentences, image[images])
    d_text = peers.own_sum(d_texts)
    active = (row_cost > 0).to(image.dtype) + (peers.own(column_cost) > 0)
    return value, _finish(d_image, d_text, image, text, active, peers.size / total, wanted)


def triplet_all(
    image: Tensor, text: Tensor, *, margin: float, ids: Tensor, group: object = None, wanted: tuple[bool, ...]
) -> Result:
    """`velm.losses.TripletLoss(hardest=False)` and its gradients; arguments and result as of `triplet_hardest`."""
    peers = Peers(group)  # type: ignore[arg-type]
    texts, all_ids, match = peers.gather(text), peers.gather(ids), torch.einsum("be,be->b", image, text)
    matches = peers.gather(match)
    walk, total = Walk(image, texts, ids, all_ids), len(all_ids)
    d_image = torch.zeros_like(image) if wanted[0] else None
    d_texts = torch.zeros_like(texts) if wanted[1] else None
    active_row, active_column = torch.zeros_like(match), torch.zeros_like(matches)
    values = []
    for tile in walk():
        tile.take(-math.inf)
        other = walk.buffer(1, *tile.scores.shape)
        torch.sub(tile.scores, matches[tile.columns] - margin, out=other).clamp_(min=0)
        tile.scores.sub_(match[tile.rows, None] - margin).clamp_(min=0)
        values.append(tile.scores.sum() + other.sum())
        torch.add(tile.scores.sign_(), other.sign_(), out=other)  # how many hinges the pair is part of
        active_row[tile.rows] += tile.scores.sum(1)
        active_column[tile.columns] += tile.scores.neg_().add_(other).sum(0)
        if d_image is not None:
            d_image[tile.rows].addmm_(other, texts[tile.columns])
        if d_texts is not None:
            d_texts[tile.columns].addmm_(other.T, image[tile.rows])
    value = peers.sum(torch.stack(values).sum()) / total
    if not any(wanted):
        return value, (None, None)
    active = active_row + peers.own(peers.sum(active_column))
    d_text = None if d_texts is None else peers.own_sum(d_texts)
    return value, _finish(d_image, d_text, image, text, active, peers.size / total, wanted)


def _finish(
    d_image: Tensor | None, d_text: Tensor | None, image: Tensor, text: Tensor, active: Tensor, factor: float,
    wanted: tuple[bool, ...],
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    """Add the pull of the matches, as often as a hinge of theirs is active, float (b,)."""
    active = active[:, None]
    d_image = d_image.addcmul_(active, text, value=-1).mul_(factor) if wanted[0] and d_image is not None else None
    d_text = d_text.addcmul_(active, image, value=-1).mul_(factor) if wanted[1] and d_text is not None else None
    return d_image, d_text


def _hardest(walk: Walk) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Of each row, then of each column, the highest score of a negative, -inf without one; and where it is, or -1."""
    found = []
    for count in (len(walk.image), len(walk.text)):
        at = torch.full((count,), -1, device=walk.image.device)
        found.append((walk.image.new_full((count,), -math.inf), at))
    for tile in walk():
        tile.take(-math.inf)
        for axis, own, across in ((1, tile.rows, tile.columns), (0, tile.columns, tile.rows)):
            peak, at = (whole[own] for whole in found[axis ^ 1])
            highest = tile.scores.amax(axis)
            higher = (highest > peak).nonzero().flatten()  # few, but for the first tiles
            peak[higher] = highest[higher]
            where = tile.scores.index_select(axis ^ 1, higher).argmax(axis)
            at[higher] = where + across.start
    return found[0], found[1]
