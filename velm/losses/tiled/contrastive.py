"""InfoNCE over several matches a row, in two passes over the tiles: log-normalisers, then gradients.

With logits l = t s, negatives' log-normalisers n_i = log sum_{j outside P(i)} exp(l_ij) of row i, n'_j of column j,

    L = 1 / 2B  sum over matches (i, p) of  softplus(n_i - l_ip) / |P(i)| + softplus(n'_p - l_ip) / |P(p)|

    dL/dl_ip = -1 / 2B (sigmoid(n_i - l_ip) / |P(i)| + sigmoid(n'_p - l_ip) / |P(p)|)        at a match
    dL/dl_ij =  1 / 2B (exp(l_ij - a_i) + exp(l_ij - a'_j))                                  elsewhere

where a_i = n_i - log w_i, and w_i is the mean of sigmoid(n_i - l_ip) over P(i). Hard negatives h_ik of image i are
columns that row i alone has: n_i sums over them too, and dL/dl_ik = 1 / 2B exp(l_ik - a_i).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn.functional import logsigmoid

from velm.losses.tiled.ranks import RankGroup
from velm.losses.tiled.tiles import TiledScores, log_sums

__all__ = ["contrastive"]


def contrastive(
    image: Tensor, text: Tensor, scale: Tensor, own: Tensor | None = None, *, ids: Tensor,
    valid: Tensor | None = None, group: dist.ProcessGroup | None = None, needs_grad: tuple[bool, ...],
) -> tuple[Tensor, tuple[Tensor | None, ...]]:  # fmt: skip
    """`velm.losses.ContrastiveLoss` and its gradients. Texts are gathered; each rank scores its own images.

    Args:
        image: float (b, E), rows of this rank; b may differ between ranks and may be 0.
        text: float (b, E), rows of this rank.
        scale: float (), t.
        own: float (b, K), similarities of each image with its own hard negatives; None: there are none.
        ids: int (b,), image ids of this rank.
        valid: bool (b, K), which of `own` count.
        group: the ranks that share the batch; None if this process holds all of it.
        needs_grad: whether to compute the gradient of image, text and scale.

    Returns:
        L of the whole batch, float (), and its gradients; those of image, text and own are of the sum of L over ranks,
        as a gather with gradient gives them.
    """
    ranks = RankGroup(group, image)
    texts, all_ids = ranks.gather(text), ranks.gather(ids)
    scores, t, factor = TiledScores(image, texts, ids, all_ids), float(scale), 1 / (2 * len(all_ids))
    logits = None if own is None else (t * own).masked_fill(~valid, -math.inf)  # type: ignore[operator]
    value, shifts, pull = _terms(scores, t, logits, _match_weights(all_ids, image.dtype), ranks)
    if not any(needs_grad):
        return value * factor, (None,) * len(needs_grad)
    d_image, d_texts = _gradients(scores, t, shifts, pull, (needs_grad[0] or needs_grad[2], needs_grad[1]), t * factor)
    d_own = None if logits is None else torch.exp(logits - shifts[0][:, None]).mul_(t * factor)
    d_scale = None
    if needs_grad[2]:
        assert d_image is not None
        by_scale = torch.dot(image.flatten(), d_image.flatten()) / t
        if d_own is not None and own is not None:
            by_scale = by_scale + torch.dot(own.flatten(), d_own.flatten()) / t
        d_scale = ranks.sum(by_scale).to(scale.dtype)
    d_text = None if d_texts is None else ranks.reduce_scatter(d_texts)
    d_image = d_image if needs_grad[0] else None
    if ranks.size > 1:
        d_image, d_text, d_own = (g if g is None else g.mul_(ranks.size) for g in (d_image, d_text, d_own))
    return value * factor, (d_image, d_text, d_scale, d_own)[: len(needs_grad)]


def _match_weights(ids: Tensor, dtype: torch.dtype) -> Tensor:
    """1 / |P(i)|, float (B,)."""
    ordered = ids.sort().values
    count = torch.searchsorted(ordered, ids, right=True) - torch.searchsorted(ordered, ids)
    return count.to(dtype).reciprocal()


def _terms(
    scores: TiledScores, scale: float, own: Tensor | None, weights: Tensor, ranks: RankGroup
) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
    """2B L; the shifts a (b,) of rows and a' (B,) of columns; 2B dL/dl of the matches (M,)."""
    rows, columns, logits = _norms(scores, scale)
    if own is not None:
        rows = torch.logaddexp(rows, own.logsumexp(1))
    columns = ranks.logsumexp(columns)
    i, j = scores.matches.rows, scores.matches.columns
    by_row, by_column = rows[i] - logits, columns[j] - logits
    value = -((logsigmoid(-by_row) + logsigmoid(-by_column)) * weights[j]).sum()
    pull_row, pull_column = by_row.sigmoid() * weights[j], by_column.sigmoid() * weights[j]
    weight_row = torch.zeros_like(rows).index_add_(0, i, pull_row)
    weight_column = torch.zeros_like(columns).index_add_(0, j, pull_column)
    value, weight_column = ranks.sum(torch.cat([value[None], weight_column])).tensor_split([1])
    shifts = _shift(rows, weight_row), _shift(columns, weight_column)
    return value.squeeze(0), shifts, (pull_row + pull_column).neg_()


def _shift(norm: Tensor, weight: Tensor) -> Tensor:
    """a = n - log w; inf where w is 0: no gradient on the negatives."""
    return torch.where(weight > 0, norm - weight.log(), math.inf)


def _norms(scores: TiledScores, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Log-normalisers of rows (b,) and columns (B,), -inf without negatives; logits of the matches (M,)."""
    rows = scores.image.new_full((len(scores.image),), -math.inf)
    columns = scores.image.new_full((len(scores.text),), -math.inf)
    logits = scores.image.new_empty(len(scores.matches.rows))
    for tile in scores(scale):
        logits[tile.matches] = tile.pop_matches(-math.inf)
        for norms, part in zip((rows[tile.rows], columns[tile.columns]), log_sums(scores, tile.scores), strict=True):
            torch.logaddexp(norms, part, out=norms)
    return rows, columns, logits


def _gradients(
    scores: TiledScores,
    scale: float,
    shifts: tuple[Tensor, Tensor],
    pull: Tensor,
    needs_grad: tuple[bool, bool],
    factor: float,
) -> tuple[Tensor | None, Tensor | None]:
    """factor * G @ text and factor * G.T @ image, where G is 2B dL/dl."""
    d_image = torch.zeros_like(scores.image) if needs_grad[0] else None
    d_text = torch.zeros_like(scores.text) if needs_grad[1] else None
    for tile in scores(scale):
        tile.pop_matches(-math.inf)
        other = scores.buffer(1, *tile.scores.shape)
        torch.sub(tile.scores, shifts[0][tile.rows, None], out=other).exp_()
        tile.scores.sub_(shifts[1][tile.columns]).exp_().add_(other)
        tile.set_matches(pull[tile.matches])
        if d_image is not None:
            d_image[tile.rows].addmm_(tile.scores, scores.text[tile.columns], alpha=factor)
        if d_text is not None:
            d_text[tile.columns].addmm_(tile.scores.T, scores.image[tile.rows], alpha=factor)
    return d_image, d_text
