"""The terms of distillation: the teacher's relations of all pairs, in two passes over the tiles, and its embeddings.

With the student's logits l = t s, the teacher's l', and over rows (columns likewise) the log-normalisers n_i and n'_i,
p_ij = exp(l'_ij - n'_i) and q_ij = exp(l_ij - n_i),

    L = 1 / 2B  sum over i, j of  p_ij (n_i - l_ij), of rows and of columns         (cross-entropy of q against p)

    dL/dl_ij = 1 / 2B ((q_ij - p_ij) of rows + (q_ij - p_ij) of columns)

A pair is no positive or negative by itself: an image that occurs twice has the teacher's probability twice.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn.functional import linear, mse_loss, normalize

from velm.losses.tiled.ranks import RankGroup
from velm.losses.tiled.tiles import TiledScores, log_sums

__all__ = ["feature_distance", "relation"]

Norms = tuple[Tensor, Tensor]


def relation(
    image: Tensor, text: Tensor, scale: Tensor, *, teacher: tuple[Tensor, Tensor], teacher_scale: float,
    group: dist.ProcessGroup | None = None, needs_grad: tuple[bool, ...],
) -> tuple[Tensor, tuple[Tensor | None, ...]]:  # fmt: skip
    """Cross-entropy of the student's softmax over all pairs against the teacher's, and its gradients.

    Texts are gathered; each rank scores its own images.

    Args:
        image: float (b, E), rows of this rank; b may differ between ranks and may be 0.
        text: float (b, E), rows of this rank.
        scale: float (), t.
        teacher: float (b, E') of images and of texts, rows of this rank.
        teacher_scale: of the teacher's cosines.
        group: the ranks that share the batch; None if this process holds all of it.
        needs_grad: whether to compute the gradient of image, text and scale.

    Returns:
        L of the whole batch, float (), and its gradients; those of image and text are of the sum of L over ranks, as a
        gather with gradient gives them.
    """
    ranks = RankGroup(group, image)
    student, teachers = _scores(image, text, ranks), _scores(*teacher, ranks)
    t, factor = float(scale), 1 / (2 * ranks.total)
    norms, teacher_norms = _norms(student, t, ranks), _norms(teachers, teacher_scale, ranks)
    value = image.new_zeros(())
    d_image = torch.zeros_like(image) if needs_grad[0] or needs_grad[2] else None
    d_texts = torch.zeros_like(student.text) if needs_grad[1] else None
    for mine, theirs in zip(student(t), teachers(teacher_scale), strict=True):
        at = [(rows[mine.rows, None], columns[mine.columns]) for rows, columns in (norms, teacher_norms)]
        slope, total = _tile(mine.scores, theirs.scores, *at)
        value += total
        if d_image is not None:
            d_image[mine.rows].addmm_(slope, student.text[mine.columns], alpha=t * factor)
        if d_texts is not None:
            d_texts[mine.columns].addmm_(slope.T, student.image[mine.rows], alpha=t * factor)
    d_scale = None
    if needs_grad[2]:
        assert d_image is not None
        d_scale = ranks.sum(torch.dot(image.flatten(), d_image.flatten()) / t).to(scale.dtype)
    d_text = None if d_texts is None else ranks.reduce_scatter(d_texts)
    embeds = (d_image if needs_grad[0] else None, d_text)
    if ranks.size > 1:
        embeds = tuple(g if g is None else g.mul_(ranks.size) for g in embeds)  # type: ignore[assignment]
    return ranks.sum(value) * factor, (*embeds, d_scale)


def _scores(image: Tensor, text: Tensor, ranks: RankGroup) -> TiledScores:
    """Scores of this rank's images and all texts; no pair is a match."""
    texts = ranks.gather(text)
    row_ids, column_ids = (torch.full((len(each),), i, device=image.device) for i, each in enumerate((image, texts)))
    return TiledScores(image, texts, row_ids, column_ids)


def _norms(scores: TiledScores, scale: float, ranks: RankGroup) -> Norms:
    """Log-normalisers of rows (b,) and of columns (B,), over all ranks."""
    rows = scores.image.new_full((len(scores.image),), -math.inf)
    columns = scores.image.new_full((len(scores.text),), -math.inf)
    for tile in scores(scale):
        for norms, part in zip((rows[tile.rows], columns[tile.columns]), log_sums(scores, tile.scores), strict=True):
            torch.logaddexp(norms, part, out=norms)
    return rows, ranks.logsumexp(columns)


def _tile(logits: Tensor, targets: Tensor, norms: Norms, target_norms: Norms) -> tuple[Tensor, Tensor]:
    """2B dL/dl of a tile, and its share of 2B L, from the logits of student and teacher."""
    slope, value = torch.zeros_like(logits), logits.new_zeros(())
    for norm, target_norm in zip(norms, target_norms, strict=True):
        log_q, p = logits - norm, (targets - target_norm).exp_()
        value -= torch.dot(p.flatten(), log_q.flatten())
        slope += log_q.exp_().sub_(p)
    return slope, value


def feature_distance(
    image: Tensor, text: Tensor, *maps: Tensor, teacher: tuple[Tensor, Tensor],
    group: dist.ProcessGroup | None = None, needs_grad: tuple[bool, ...],
) -> tuple[Tensor, tuple[Tensor | None, ...]]:  # fmt: skip
    """Mean squared difference from the teacher's embeddings, of images plus of texts, and its gradients.

    The fd_loss of CLIP-KD (Yang et al. 2024, arXiv 2307.12732).

    Args:
        image, text: float (b, E), rows of this rank.
        maps: weight (E', E) and bias (E',) for images, then for texts, applied before the embeddings are normalised
            again; none: E is E'.
        teacher: float (b, E') of images and of texts, L2-normalised.
        group, needs_grad: as of `relation`; `needs_grad` goes on with the maps.

    Returns:
        as `relation`; the gradient of a map is that of L.
    """
    ranks = RankGroup(group, image)
    inputs = [each.requires_grad_(need) for each, need in zip((image, text, *maps), needs_grad, strict=True)]
    with torch.enable_grad():
        distances = []
        for number, (embeds, target) in enumerate(zip(inputs[:2], teacher, strict=True)):
            if maps:
                embeds = normalize(linear(embeds, *inputs[2 + 2 * number : 4 + 2 * number]), dim=1)
            distances.append(mse_loss(embeds, target, reduction="sum"))
        value = torch.stack(distances).sum() / (ranks.total * teacher[0].shape[1])
        wanted = [each for each in inputs if each.requires_grad]
        found = dict(zip(map(id, wanted), torch.autograd.grad(value, wanted) if wanted else (), strict=True))
    gradients = [found.get(id(each)) for each in inputs]
    if ranks.size > 1:
        embeds_grads = [g if g is None else g * ranks.size for g in gradients[:2]]
        gradients = [*embeds_grads, *(g if g is None else ranks.sum(g) for g in gradients[2:])]
    return ranks.sum(value.detach()), tuple(gradients)
