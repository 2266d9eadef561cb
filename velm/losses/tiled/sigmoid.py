"""SigLIP's loss in one walk: every pair stands for itself, so its gradient is at hand with its value.

With logits l = t s + b, and q = -l at matches and l elsewhere,  L = 1/B sum softplus(q),  dL/dq = sigmoid(q) / B.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from velm.losses.tiled.peers import Peers
from velm.losses.tiled.walk import Tile, Walk

__all__ = ["sigmoid"]


def sigmoid(
    image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, *, ids: Tensor, group: object = None,
    wanted: tuple[bool, ...],
) -> tuple[Tensor, tuple[Tensor | None, ...]]:  # fmt: skip
    """`velm.losses.SigmoidLoss` and its gradients; texts go round a ring, so that no rank holds more than two shares.

    As in arXiv 2303.15343, section 3.3; the gradient of a share of texts travels with it and ends at its owner.

    Args:
        image: float (b, E), this rank's.
        text: float (b, E), this rank's.
        scale: float (), t.
        bias: float (), b.
        ids: int (b,), this rank's.
        group: the process group whose ranks hold the batch between them; None if this is all of it.
        wanted: for which of image, text, scale and bias a gradient is made.

    Returns:
        L of the whole batch, float (); and its gradients, those of image and text summed over the ranks' losses.
    """
    peers = Peers(group)  # type: ignore[arg-type]
    factor = 1 / (peers.size * len(image))
    t, b = float(scale), float(bias)
    d_image = torch.zeros_like(image) if wanted[0] or wanted[2] else None
    d_text = torch.zeros_like(text) if wanted[1] else None
    sums = image.new_zeros(2)  # of softplus(q) and of dL/dl
    texts, their_ids = text, ids
    for step in range(peers.size):
        last = step == peers.size - 1
        passing = None if last else peers.pass_on([texts, their_ids])
        sums += _share(Walk(image, texts, ids, their_ids), (t, b), (d_image, d_text), any(wanted), t * factor)
        if passing is not None:
            texts, their_ids = passing.wait()
        if d_text is not None:
            d_text = peers.pass_on([d_text]).wait()[0]
    slope = torch.zeros_like(sums[0])
    if wanted[2]:
        assert d_image is not None
        slope = torch.dot(image.flatten(), d_image.flatten()) / t
    value, d_bias, d_scale = peers.sum(torch.cat([sums * factor, slope[None]])).unbind()
    d_image = d_image if wanted[0] else None
    if peers.size > 1:
        d_image, d_text = (g if g is None else g.mul_(peers.size) for g in (d_image, d_text))
    d_scale, d_bias = d_scale.to(scale.dtype, copy=True), d_bias.to(bias.dtype, copy=True)
    return value, (d_image, d_text, d_scale if wanted[2] else None, d_bias if wanted[3] else None)


def _share(
    walk: Walk, line: tuple[float, float], gradients: tuple[Tensor | None, Tensor | None], wanted: bool, factor: float
) -> Tensor:
    """Sums of softplus(q) and of its slope by l over the pairs of the walk, float (2,); adds to the gradients."""
    d_image, d_text = gradients
    values, slopes = [], []
    for tile in walk(*line):
        tile.put(tile.take(0).neg_())
        values.append(_softplus_and_slope(walk, tile))
        if not wanted:
            continue
        tile.put(tile.take(0).neg_())
        slopes.append(tile.scores.sum())
        if d_image is not None:
            d_image[tile.rows].addmm_(tile.scores, walk.text[tile.columns], alpha=factor)
        if d_text is not None:
            d_text[tile.columns].addmm_(tile.scores.T, walk.image[tile.rows], alpha=factor)
    value = torch.stack(values).sum()
    return torch.stack([value, torch.stack(slopes).sum() if wanted else torch.zeros_like(value)])


def _softplus_and_slope(walk: Walk, tile: Tile) -> Tensor:
    """The tile's sum of softplus(q), q its scores, which become sigmoid(q)."""
    q, other = tile.scores, walk.buffer(1, *tile.scores.shape)
    if q.amax() < 1:  # 1 - sigmoid(q) is exact enough, and one logarithm cheaper
        return torch.neg(q.sigmoid_(), out=other).log1p_().sum().neg()
    value = logsigmoid(torch.neg(q, out=other)).sum().neg()
    q.sigmoid_()
    return value
