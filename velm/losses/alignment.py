"""Alignment losses: matching images and texts have similar embeddings, others do not.

Notation: u_i, v_j the L2-normalised embeddings of image i and text j, s_ij = u_i . v_j, and
P(i) = {j: image_ids[j] == image_ids[i]}, which always contains i. Everything in P(i) is a match of i and never a
negative: two captions of one image are not pushed away from it.

The contrastive and the sigmoid loss sum over all pairs in tiles, with hand-written gradients: memory grows with B times
E and the number of matches, not with B x B; with a process group, each rank computes its share.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch import distributed as dist

from velm.losses.base import Loss, full_precision
from velm.losses.tiled.contrastive import contrastive
from velm.losses.tiled.sigmoid import sigmoid
from velm.losses.tiled.tiles import with_gradient
from velm.outputs import EMBEDS, Batch, VisionLanguageOutput

__all__ = ["ContrastiveLoss", "SigmoidLoss", "TripletLoss"]


class _AlignmentLoss(Loss):
    """A loss of image and text embeddings (B, E) and of which of them match."""

    requires = EMBEDS

    def forward(self, output: VisionLanguageOutput, batch: Batch, group: dist.ProcessGroup | None = None) -> Tensor:
        """The loss, float (), float32 at least.

        Args:
            output: with the embeddings, (B, E); with a group, (b, E) of this rank.
            batch: with the image ids, one for each row of the embeddings.
            group: the ranks that share the batch, for a loss with `shares`; None: the batch is complete.

        Raises:
            MissingOutputError: an embedding is missing.
            ValueError: embeddings and image ids differ in length.
        """
        image, text = self.embeddings(output, batch)
        with torch.autocast(image.device.type, enabled=False):
            return self.of_pairs(image, text, batch.image_ids, group)

    def embeddings(self, output: VisionLanguageOutput, batch: Batch) -> tuple[Tensor, Tensor]:
        """Of image and text, float (B, E), in one dtype, float32 at least; raises as `forward` does."""
        self.check(output)
        image, text, ids = output.image_embeds, output.text_embeds, batch.image_ids
        if not len(image) == len(text) == len(ids):
            raise ValueError(
                f"{type(self).__name__} needs one row per pair: got image_embeds {len(image)}, text_embeds "
                f"{len(text)}, image_ids {len(ids)}. Gather all three across ranks, or none."
            )
        # bfloat16 similarities differ in steps of 0.004, which a scale of 100 turns into 0.4 nats
        image, text = full_precision(image), full_precision(text)
        dtype = torch.promote_types(image.dtype, text.dtype)
        return image.to(dtype), text.to(dtype)

    def of_pairs(self, image: Tensor, text: Tensor, ids: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        raise NotImplementedError


def _log_scale(temperature: float, learnable: bool) -> nn.Parameter:
    if not temperature > 0:
        raise ValueError(f"temperature {temperature} is not above 0: it divides the similarities.")
    return nn.Parameter(torch.tensor(-math.log(temperature)), requires_grad=learnable)


class ContrastiveLoss(_AlignmentLoss):
    """Symmetric InfoNCE (CLIP, arXiv 2103.00020), with several captions an image.

    For a row i, with scale t and negatives N(i) = everything outside P(i),

        L_i = mean over p in P(i) of  -log( exp(t s_ip) / (exp(t s_ip) + sum over n in N(i) of exp(t s_in)) )

    and the loss is the mean of L_i over rows and columns. With distinct images this is CLIP's formula.
    Each match competes with the negatives only. With the other matches in the denominator (SupCon's L_out,
    arXiv 2004.11362), the better of two right captions is pushed away and the loss never reaches 0; with a logarithm
    of the sum of matches (MIL-NCE, arXiv 1912.06430), one caption of five suffices. Here the gradient on a
    match is never repulsive, every match is pulled, and the floor is 0.

    In nats: log(B) when the embeddings carry no information and the images are distinct; in general the
    mean of log(1 + |N(i)|).

    With `hard_negatives`, N(i) of image i holds K more texts, made false of it by one change of its own caption i, as
    in NegCLIP (Yuksekgonul et al. 2023, arXiv 2210.01936). There all images of a batch share all hard negatives; here
    each image has its own, since those of others are easy. Texts have no further negatives. A batch without them, as
    in validation, gives the loss without them, which compares with that of other runs.

    Args:
        temperature: initial value of 1 / scale, > 0.
        learnable: train the scale.
        max_scale: upper bound of the scale. As in CLIP, the parameter itself is clamped before use, so that at the
            bound it still has a gradient and can decrease.
        hard_negatives: K, >= 0, hard negatives per caption in training; each costs a pass of the text encoder.
    """

    shares = True

    def __init__(
        self,
        *,
        temperature: float = 0.07,
        learnable: bool = True,
        max_scale: float = 100.0,
        hard_negatives: int = 0,
    ) -> None:
        super().__init__()
        if hard_negatives < 0:
            raise ValueError(f"hard_negatives {hard_negatives} is below 0: it is a number of captions; 0 adds none.")
        self.hard_negatives = hard_negatives
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

    def forward(self, output: VisionLanguageOutput, batch: Batch, group: dist.ProcessGroup | None = None) -> Tensor:
        image, text = self.embeddings(output, batch)
        negatives = output.embeddings.hard_negatives if self.hard_negatives and output.embeddings else None
        with torch.autocast(image.device.type, enabled=False):
            if negatives is None:
                return self.of_pairs(image, text, batch.image_ids, group)
            own = torch.bmm(full_precision(negatives.text).to(image.dtype), image.unsqueeze(2)).squeeze(2)
            return self.of_pairs(image, text, batch.image_ids, group, own, negatives.valid)

    def of_pairs(
        self,
        image: Tensor,
        text: Tensor,
        ids: Tensor,
        group: dist.ProcessGroup | None,
        own: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> Tensor:
        """The loss, float ().

        Args:
            own: float (B, K), similarities of each image with its own hard negatives; None: there are none.
            valid: bool (B, K), which of them count.
        """
        with torch.no_grad():
            self.log_scale.clamp_(max=math.log(self.max_scale))
        inputs = (image, text, self.logit_scale, *(() if own is None else (own,)))
        return with_gradient(partial(contrastive, ids=ids, valid=valid, group=group), *inputs)

    def logged(self) -> dict[str, Tensor | float]:
        return {"logit_scale": self.logit_scale.detach()}


class SigmoidLoss(_AlignmentLoss):
    """SigLIP (arXiv 2303.15343): binary classification of every pair.

    -1/B times the sum over all i, j of  log sigmoid(z_ij (t s_ij + b)),  z_ij = 1 where j is in P(i), else
    -1. Normalised by B as in the paper, so that the value grows with the batch.

    Args:
        temperature: initial value of 1 / scale, > 0.
        bias: initial value of b; far below 0 because nearly all pairs of a batch do not match.
        learnable: train scale and bias.
    """

    shares = True

    def __init__(self, *, temperature: float = 0.1, bias: float = -10.0, learnable: bool = True) -> None:
        super().__init__()
        self.log_scale = _log_scale(temperature, learnable)
        self.bias = nn.Parameter(torch.tensor(float(bias)), requires_grad=learnable)

    @property
    def logit_scale(self) -> Tensor:
        return full_precision(self.log_scale).exp()

    def of_pairs(self, image: Tensor, text: Tensor, ids: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        return with_gradient(partial(sigmoid, ids=ids, group=group), image, text, self.logit_scale, self.bias)

    def logged(self) -> dict[str, Tensor | float]:
        return {"logit_scale": self.logit_scale.detach(), "logit_bias": self.bias.detach()}


class TripletLoss(_AlignmentLoss):
    """VSE++ (arXiv 1707.05612, equation 6): a match beats the hardest negative of its batch by a margin.

    1/B times the sum over i of  max over n of [margin + s_in - s_ii]_+  for image i against texts n outside P(i), plus
    the same for text i against images n. The paper sums over the batch; with the mean, one learning rate serves every
    batch size. Rows without negatives cost nothing.

    Stores a few B x B matrices: 4 MiB each at B = 1,024 in float32. Every device computes the loss of the whole batch.

    Args:
        margin: difference in cosine similarity, >= 0.
        hardest: the maximum over the negatives (VSE++); false: their sum (VSE0), gentler at the start of training.
    """

    def __init__(self, *, margin: float = 0.2, hardest: bool = True) -> None:
        super().__init__()
        if not margin >= 0:
            raise ValueError(f"margin {margin} is below 0: a match should win, not lose.")
        self.margin, self.hardest = margin, hardest

    def of_pairs(self, image: Tensor, text: Tensor, ids: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        similarity = image @ text.T
        match = similarity.diagonal()
        negatives = similarity.masked_fill(ids[:, None] == ids, -math.inf)
        if self.hardest:
            hinges = [self.margin + negatives.max(axis).values - match for axis in (1, 0)]
        else:
            hinges = [self.margin + negatives - match.unsqueeze(axis) for axis in (1, 0)]
        return torch.stack([hinge.clamp(min=0).sum() for hinge in hinges]).sum() / len(image)
