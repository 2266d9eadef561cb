"""InfoNCE, each match against the negatives, in two walks over the tiles: norms, then gradients.

With logits l = t s, negatives' norms n_i = log sum_{j outside P(i)} exp(l_ij) of row i and n'_j of column j,

    L = 1 / 2B  sum over matches (i, p) of  softplus(n_i - l_ip) / |P(i)| + softplus(n'_p - l_ip) / |P(p)|

    dL/dl_ip = -1 / 2B (sigmoid(n_i - l_ip) / |P(i)| + sigmoid(n'_p - l_ip) / |P(p)|)        at a match
    dL/dl_ij =  1 / 2B (exp(l_ij - a_i) + exp(l_ij - a'_j))                                  elsewhere

where a_i = n_i - log w_i, and w_i is the mean of sigmoid(n_i - l_ip) over P(i).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from velm.losses.tiled.peers import Peers
from velm.losses.tiled.walk import Walk

__all__ = ["contrastive"]


def contrastive(
    image: Tensor, text: Tensor, scale: Tensor, *, ids: Tensor, group: object = None, wanted: tuple[bool, ...]
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """`velm.losses.ContrastiveLoss` and its gradients; texts meet all images, which stay where they are.

    Args:
        image: float (b, E), this rank's.
        text: float (b, E), this rank's.
        scale: float (), t.
        ids: int (b,), this rank's.
        group: the process group whose ranks hold the batch between them; None if this is all of it.
        wanted: for which of image, text and scale a gradient is made.

    Returns:
        L of the whole batch, float (); and its gradients, those of image and text summed over the ranks' losses.
    """
    peers = Peers(group)  # type: ignore[arg-type]
    texts, all_ids = peers.gather(text), peers.gather(ids)
    walk, t, factor = Walk(image, texts, ids, all_ids), float(scale), 1 / (2 * len(all_ids))
    value, shifts, pull = _terms(walk, t, _share(all_ids, image.dtype), peers)
    if not any(wanted):
        return value * factor, (None, None, None)
    d_image, d_texts = _gradients(walk, t, shifts, pull, (wanted[0] or wanted[2], wanted[1]), t * factor)
    d_scale = None
    if wanted[2]:
        assert d_image is not None
        d_scale = peers.sum(torch.dot(image.flatten(), d_image.flatten()) / t).to(scale.dtype)
    d_text = None if d_texts is None else peers.own_sum(d_texts)
    d_image = d_image if wanted[0] else None
    if peers.size > 1:
        d_image, d_text = (g if g is None else g.mul_(peers.size) for g in (d_image, d_text))
    return value * factor, (d_image, d_text, d_scale)


def _share(ids: Tensor, dtype: torch.dtype) -> Tensor:
    """1 / |P(i)|, float (B,)."""
    ordered = ids.sort().values
    count = torch.searchsorted(ordered, ids, right=True) - torch.searchsorted(ordered, ids)
    return count.to(dtype).reciprocal()


def _terms(walk: Walk, scale: float, share: Tensor, peers: Peers) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
    """2B L; the shifts a (b,) of rows and a' (B,) of columns; and 2B dL/dl of the matches (M,)."""
    rows, columns, logits = _norms(walk, scale)
    columns = peers.logsumexp(columns)
    i, j = walk.matches.rows, walk.matches.columns
    by_row, by_column = rows[i] - logits, columns[j] - logits
    value = -((logsigmoid(-by_row) + logsigmoid(-by_column)) * share[j]).sum()
    pull_row, pull_column = by_row.sigmoid() * share[j], by_column.sigmoid() * share[j]
    weight_row = torch.zeros_like(rows).index_add_(0, i, pull_row)
    weight_column = torch.zeros_like(columns).index_add_(0, j, pull_column)
    value, weight_column = peers.sum(torch.cat([value[None], weight_column])).tensor_split([1])
    shifts = _shift(rows, weight_row), _shift(columns, weight_column)
    return value.squeeze(0), shifts, (pull_row + pull_column).neg_()


def _shift(norm: Tensor, weight: Tensor) -> Tensor:
    """a = n - log w; inf where nothing is to be pushed away."""
    return torch.where(weight > 0, norm - weight.log(), math.inf)


def _norms(walk: Walk, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """The negatives' norms of rows (b,) and columns (B,), -inf where there are none; logits of the matches (M,)."""
    rows = walk.image.new_full((len(walk.image),), -math.inf)
    columns = walk.image.new_full((len(walk.text),), -math.inf)
    logits = walk.image.new_empty(len(walk.matches.rows))
    for tile in walk(scale):
        logits[tile.matches] = tile.take(-math.inf)
        for norms, part in zip((rows[tile.rows], columns[tile.columns]), _log_sums(walk, tile.scores), strict=True):
            torch.logaddexp(norms, part, out=norms)
    return rows, columns, logits


def _log_sums(walk: Walk, logits: Tensor) -> tuple[Tensor, Tensor]:
    """logsumexp along each axis: from one exponential of each number where that loses nothing, else from two."""
    peak = logits.amax()
    shared = torch.sub(logits, peak, out=walk.buffer(1, *logits.shape)).exp_()
    sums = shared.sum(1), shared.sum(0)
    info = torch.finfo(logits.dtype)
    # then all that has underflowed is below rounding; not so in a row far below the peak, nor in one that is nan
    least = info.tiny / info.eps * max(logits.shape)
    if torch.stack([each.amin() for each in sums]).amin() > least:
        return sums[0].log_().add_(peak), sums[1].log_().add_(peak)
    return logits.logsumexp(1), logits.logsumexp(0)


def _gradients(
    walk: Walk, scale: float, shifts: tuple[Tensor, Tensor], pull: Tensor, wanted: tuple[bool, bool], factor: float
) -> tuple[Tensor | None, Tensor | None]:
    """factor * G @ text and factor * G.T @ image, where G is 2B dL/dl."""
    d_image = torch.zeros_like(walk.image) if wanted[0] else None
    d_text = torch.zeros_like(walk.text) if wanted[1] else None
    for tile in walk(scale):
        tile.take(-math.inf)
        other = walk.buffer(1, *tile.scores.shape)
        torch.sub(tile.scores, shifts[0][tile.rows, None], out=other).exp_()
        tile.scores.sub_(shifts[1][tile.columns]).exp_().add_(other)
        tile.put(pull[tile.matches])
        if d_image is not None:
            d_image[tile.rows].addmm_(tile.scores, walk.text[tile.columns], alpha=factor)
        if d_text is not None:
            d_text[tile.columns].addmm_(tile.scores.T, walk.image[tile.rows], alpha=factor)
    return d_image, d_text
