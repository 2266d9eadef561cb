"""Alignment: matching images and sentences together, the others apart.

Notation: u_i, v_j the L2-normalised embeddings of image i and text j, s_ij = u_i . v_j, and
P(i) = {j: image_ids[j] == image_ids[i]}, which always holds i. Whatever is in P(i) is a match of i and never
a negative, so that two captions of one image are never pushed away from it.

The sums over all pairs are made in tiles, each with its gradient: memory grows with B times E and the number of
matches, never with B x B. Where the batch names a `group`, its ranks hold a share each, and compute a share each.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from velm.losses.base import Loss, full_precision
from velm.losses.tiled.contrastive import contrastive
from velm.losses.tiled.sigmoid import sigmoid
from velm.losses.tiled.triplet import triplet_all, triplet_hardest
from velm.losses.tiled.walk import with_gradient
from velm.outputs import EMBEDS, Batch, VisionLanguageOutput

__all__ = ["ContrastiveLoss", "SigmoidLoss", "TripletLoss"]


class _AlignmentLoss(Loss):
    """A loss of image and text embeddings (B, E) and of which of them match, on one device or on many."""

    requires = EMBEDS
    shares = True

    def forward(self, output: VisionLanguageOutput, batch: Batch) -> Tensor:
        self.check(output)
        image, text, ids = output.image_embeds, output.text_embeds, batch.image_ids
        assert image is not None
        assert text is not None
        if not len(image) == len(text) == len(ids):
            raise ValueError(
                f"{type(self).__name__} wants a row a pair: image_embeds has {len(image)}, "
                f"text_embeds {len(text)}, image_ids {len(ids)}. Gather all three, or none."
            )
        # bfloat16 similarities differ in steps of 0.004, which a scale of 100 turns into 0.4 nats
        image, text = full_precision(image), full_precision(text)
        dtype = torch.promote_types(image.dtype, text.dtype)
        with torch.autocast(image.device.type, enabled=False):
            return self.of_pairs(image.to(dtype), text.to(dtype), {"ids": ids, "group": batch.group})

    def of_pairs(self, image: Tensor, text: Tensor, batch: dict[str, Any]) -> Tensor:
        raise NotImplementedError


def _log_scale(temperature: float, learnable: bool) -> nn.Parameter:
    if not temperature > 0:
        raise ValueError(f"temperature {temperature} is not above 0: it divides the similarities.")
    return nn.Parameter(torch.tensor(-math.log(temperature)), requires_grad=learnable)


class ContrastiveLoss(_AlignmentLoss):
    """Symmetric InfoNCE (CLIP, arXiv 2103.00020), aware of several captions an image.

    For a row i, with scale t and negatives N(i) = everything outside P(i),

        L_i = mean over p in P(i) of  -log( exp(t s_ip) / (exp(t s_ip) + sum over n in N(i) of exp(t s_in)) )

    and the loss is the mean of L_i over rows and columns. With distinct images this is CLIP's formula.
    Each match competes with the negatives only. Leaving the other matches in the denominator (SupCon's
    L_out, arXiv 2004.11362) pushes the better of two right captions away and never reaches 0; a logarithm of
    the sum of matches (MIL-NCE, arXiv 1912.06430) is content with one caption of five. Here the gradient on a
    match is never repulsive, every match is pulled, and the floor is 0.

    In nats: log(B) when the embeddings carry no information and the images are distinct; in general the
    mean of log(1 + |N(i)|).

    Args:
        temperature: where 1 / scale starts, > 0.
        learnable: whether the scale is trained.
        max_scale: the scale never exceeds this. As in CLIP, the parameter itself is put back at the bound
            before it is used, so that at the bound it still has a gradient and can come down.
    """

    def __init__(self, *, temperature: float = 0.07, learnable: bool = True, max_scale: float = 100.0) -> None:
        super().__init__()
        if not max_scale > 0:
            raise ValueError(f"max_scale {max_scale} is not above 0.")
        if temperature > 0 and 1 / temperature > max_scale * (1 + 1e-6):
            raise ValueError(
                f"temperature {temperature} is a scale of {1 / temperature:g}, above max_scale {max_scale}: "
                f"raise one of them."
            )
        self.max_scale = max_scale
        self.log_scale = _log_scale(temperature, learnable)

    @property
    def logit_scale(self) -> Tensor:
        return full_precision(self.log_scale).exp()

    def of_pairs(self, image: Tensor, text: Tensor, batch: dict[str, Any]) -> Tensor:
        with torch.no_grad():
            self.log_scale.clamp_(max=math.log(self.max_scale))
        return with_gradient(partial(contrastive, **batch), image, text, self.logit_scale)

    def logged(self) -> dict[str, Tensor | float]:
        return {"logit_scale": self.logit_scale.detach()}


class SigmoidLoss(_AlignmentLoss):
    """SigLIP (arXiv 2303.15343): every pair is a yes-or-no question.

    -1/B times the sum over all i, j of  log sigmoid(z_ij (t s_ij + b)),  z_ij = 1 where j is in P(i), else
    -1. Normalised by B as in the paper, so that the value grows with the batch.

    Args:
        temperature: where 1 / scale starts, > 0.
        bias: where b starts; far below 0 because nearly all pairs of a batch do not match.
        learnable: whether scale and bias are trained.
    """

    def __init__(self, *, temperature: float = 0.1, bias: float = -10.0, learnable: bool = True) -> None:
        super().__init__()
        self.log_scale = _log_scale(temperature, learnable)
        self.bias = nn.Parameter(torch.tensor(float(bias)), requires_grad=learnable)

    @property
    def logit_scale(self) -> Tensor:
        return full_precision(self.log_scale).exp()

    def of_pairs(self, image: Tensor, text: Tensor, batch: dict[str, Any]) -> Tensor:
        return with_gradient(partial(sigmoid, **batch), image, text, self.logit_scale, self.bias)

    def logged(self) -> dict[str, Tensor | float]:
        return {"logit_scale": self.logit_scale.detach(), "logit_bias": self.bias.detach()}


class TripletLoss(_AlignmentLoss):
    """VSE++ (arXiv 1707.05612): a match beats the hardest negative of its batch by a margin.

    1/B times the sum over i of  [margin + s_in - s_ii]_+  for image i against text n, plus the same for
    text i against image n; n outside P(i), the worst one or all of them. The paper sums over the batch; the
    mean makes one learning rate serve every batch size. Rows without negatives cost nothing. Of equally hard
    negatives the first is pushed away.

    Args:
        margin: by how much of cosine similarity a match has to win, >= 0.
        hardest: the maximum over the negatives (VSE++); false: their sum (VSE0, gentler at the start).
    """

    def __init__(self, *, margin: float = 0.2, hardest: bool = True) -> None:
        super().__init__()
        if not margin >= 0:
            raise ValueError(f"margin {margin} is below 0: a match should win, not lose.")
        self.margin, self.hardest = margin, hardest

    def of_pairs(self, image: Tensor, text: Tensor, batch: dict[str, Any]) -> Tensor:
        compute = triplet_hardest if self.hardest else triplet_all
        return with_gradient(partial(compute, margin=self.margin, **batch), image, text)
