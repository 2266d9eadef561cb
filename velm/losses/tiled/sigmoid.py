"""SigLIP's loss in one pass over the tiles: the pairs are independent, so value and gradient come together.

With logits l = t s + b, and q = -l at matches and l elsewhere,  L = 1/B sum softplus(q),  dL/dq = sigmoid(q) / B.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn.functional import logsigmoid

from velm.losses.tiled.ranks import RankGroup
from velm.losses.tiled.tiles import Tile, TiledScores

__all__ = ["sigmoid"]


def sigmoid(
    image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, *, ids: Tensor,
    group: dist.ProcessGroup | None = None, needs_grad: tuple[bool, ...],
) -> tuple[Tensor, tuple[Tensor | None, ...]]:  # fmt: skip
    """`velm.losses.SigmoidLoss` and its gradients. Texts travel round a ring of ranks (arXiv 2303.15343, section 3.3).

    No rank holds more than two ranks' texts. Their gradient travels with them and ends at their owner.

    Args:
        image: float (b, E), rows of this rank; b may differ between ranks and may be 0.
        text: float (b, E), rows of this rank.
        scale: float (), t.
        bias: float (), b.
        ids: int (b,), image ids of this rank.
        group: the ranks that share the batch; None if this process holds all of it.
        needs_grad: whether to compute the gradient of image, text, scale and bias.

    Returns:
        L of the whole batch, float (), and its gradients; those of image and text are of the sum of L over ranks, as a
        gather with gradient gives them.
    """
    ranks = RankGroup(group, image)
    factor = 1 / ranks.total
    t, b = float(scale), float(bias)
    d_image = torch.zeros_like(image) if needs_grad[0] or needs_grad[2] else None
    sums = image.new_zeros(2)  # of softplus(q) and of dL/dl
    texts, their_ids = ranks.pad(text), ranks.pad(ids)
    d_text = torch.zeros_like(texts) if needs_grad[1] else None
    for step in range(ranks.size):
        last = step == ranks.size - 1
        count = ranks.rows[(ranks.rank - step) % ranks.size]  # of the rank whose texts are here
        exchange = None if last else ranks.ring_exchange([texts, their_ids])
        scores = TiledScores(image, texts[:count], ids, their_ids[:count])
        d_texts = None if d_text is None else d_text[:count]
        sums += _add_pairs(scores, (t, b), (d_image, d_texts), any(needs_grad), t * factor)
        if exchange is not None:
            texts, their_ids = exchange.wait()
        if d_text is not None:
            d_text = ranks.ring_exchange([d_text]).wait()[0]
    slope = torch.zeros_like(sums[0])
    if needs_grad[2]:
        assert d_image is not None
        slope = torch.dot(image.flatten(), d_image.flatten()) / t
    value, d_bias, d_scale = ranks.sum(torch.cat([sums * factor, slope[None]])).unbind()
    d_image, d_text = d_image if needs_grad[0] else None, None if d_text is None else d_text[: len(text)]
    if ranks.size > 1:
        d_image, d_text = (g if g is None else g.mul_(ranks.size) for g in (d_image, d_text))
    d_scale, d_bias = d_scale.to(scale.dtype, copy=True), d_bias.to(bias.dtype, copy=True)
    return value, (d_image, d_text, d_scale if needs_grad[2] else None, d_bias if needs_grad[3] else None)


def _add_pairs(
    scores: TiledScores,
    line: tuple[float, float],
    gradients: tuple[Tensor | None, Tensor | None],
    needs_grad: bool,
    factor: float,
) -> Tensor:
    """Sums of softplus(q) and of its derivative by l over the pairs, float (2,); adds to the gradients in place."""
    d_image, d_text = gradients
    none = scores.image.new_zeros(())  # a rank without rows has no tiles
    values, slopes = [none], [none]
    for tile in scores(*line):
        tile.set_matches(tile.pop_matches(0).neg_())
        values.append(_softplus_and_slope(scores, tile))
        if not needs_grad:
            continue
        tile.set_matches(tile.pop_matches(0).neg_())
        slopes.append(tile.scores.sum())
        if d_image is not None:
            d_image[tile.rows].addmm_(tile.scores, scores.text[tile.columns], alpha=factor)
        if d_text is not None:
            d_text[tile.columns].addmm_(tile.scores.T, scores.image[tile.rows], alpha=factor)
    return torch.stack([torch.stack(values).sum(), torch.stack(slopes).sum()])


def _softplus_and_slope(scores: TiledScores, tile: Tile) -> Tensor:
    """Sum of softplus(q) over the tile's scores q, which become sigmoid(q) in place."""
    q, other = tile.scores, scores.buffer(1, *tile.scores.shape)
    if q.amax() < 1:  # -log(1 - sigmoid(q)) is exact enough, and one logarithm cheaper
        return torch.neg(q.sigmoid_(), out=other).log1p_().sum().neg()
    value = logsigmoid(torch.neg(q, out=other)).sum().neg()
    q.sigmoid_()
    return value
