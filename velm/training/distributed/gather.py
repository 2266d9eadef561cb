"""Gathers embeddings, image ids and token counts over the ranks, so that the loss of many processes is that of one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import lightning
import torch
from torch import Tensor
from torch import distributed as dist

from velm.losses.tiled.ranks import RankGroup
from velm.negatives import NegativeEmbeddings
from velm.outputs import IGNORE, Batch, DecoderOutput, JointEmbeddings, VisionLanguageOutput

__all__ = ["Gather", "drop_stand_in", "gather_list", "weigh_penalty"]


class Gather:
    """Turns one rank's output and batch into those of all ranks; on one rank it changes nothing.

    The gradient is the whole batch's, however the ranks share it: every rank computes the same loss of the gathered
    embeddings, the gather's backward sums the ranks' gradients, and DDP's mean divides by the number of ranks again. A
    mean over tokens or samples becomes global when each rank divides its sum by the mean of the ranks' counts.

    Args:
        module: attached to the trainer that knows the ranks.
        batch: this rank's.

    Attributes:
        group: the process group of all ranks, for losses that share the work; None on one rank.
        rows: samples of each rank; 0 where it has a stand-in.
    """

    def __init__(self, module: lightning.LightningModule, batch: Batch) -> None:
        self.group = dist.group.WORLD if module.trainer.world_size > 1 else None
        self.ranks = RankGroup(self.group, batch.image_ids[: batch.samples])
        self.rows = self.ranks.rows

    def fraction(self, samples: int) -> float:
        """Weight of a mean over so many of this rank's samples: their number divided by the mean over ranks."""
        return samples * self.ranks.size / self.ranks.total

    def token_count(self, count: Tensor) -> Tensor:
        """The mean over the ranks of how many tokens each predicts, float (); a sum divided by it is a global mean."""
        count = count.float()
        return count.clamp(min=1) if self.group is None else self.ranks.sum(count) / self.ranks.size

    def all(
        self, output: VisionLanguageOutput, batch: Batch, *, share: bool = False
    ) -> tuple[VisionLanguageOutput, Batch]:
        """Embeddings and image ids of every rank, with gradient, and the token count that makes means global.

        Args:
            output: this rank's.
            batch: this rank's.
            share: the losses exchange embeddings themselves, given `group`: embeddings and ids stay this rank's.
        """
        output, batch = drop_stand_in(output, batch)
        if output.prediction is not None and self.group is not None:
            batch = replace(batch, target_count=self.token_count((output.labels != IGNORE).sum()))
            weigh_penalty(output, self.fraction(len(batch)))
        return self.embeds(output, batch, share=share)

    def embeds(
        self, output: VisionLanguageOutput, batch: Batch, *, share: bool = False
    ) -> tuple[VisionLanguageOutput, Batch]:
        """The part of `all` that concerns embeddings; unchanged where the output has none."""
        if self.group is None or share or output.embeddings is None:
            return output, batch
        image, text = (_GatherRows.apply(each, self.ranks) for each in (output.image_embeds, output.text_embeds))
        ids = self.ranks.gather(batch.image_ids)
        teacher = None if batch.teacher is None else batch.teacher.map(self.ranks.gather)
        embeddings = JointEmbeddings(image, text, self._negatives(output.embeddings.hard_negatives))
        return replace(output, embeddings=embeddings), replace(batch, image_ids=ids, teacher=teacher)

    def _negatives(self, own: NegativeEmbeddings | None) -> NegativeEmbeddings | None:
        if own is None:
            return None
        valid = self.ranks.gather(own.valid.long()).bool()  # not all backends send bool
        return NegativeEmbeddings(_GatherRows.apply(own.text, self.ranks), valid)


class _GatherRows(torch.autograd.Function):
    """The rows of all ranks; the gradient of a rank's rows is summed over the ranks."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, ranks: RankGroup) -> Tensor:
        ctx.ranks = ranks
        return ranks.gather(own)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.ranks.reduce_scatter(gradient.contiguous()), None


def drop_stand_in(output: VisionLanguageOutput, batch: Batch) -> tuple[VisionLanguageOutput, Batch]:
    """Output and batch without the samples of a stand-in; its parameters still get a gradient, of zeros."""
    if not batch.stand_in:
        return output, batch
    result = VisionLanguageOutput()
    if output.embeddings is not None:
        negatives = output.embeddings.hard_negatives
        result.embeddings = JointEmbeddings(
            output.image_embeds[:0],
            output.text_embeds[:0],
            None if negatives is None else negatives.map(lambda tensor: tensor[:0]),
        )
    if output.prediction is not None:
        decoder = DecoderOutput(output.decoder.hidden[:0], penalty=output.decoder.penalty)
        result.prediction = replace(output.prediction, decoder=decoder, labels=output.labels[:0])
    return result, batch[:0]


def weigh_penalty(output: VisionLanguageOutput, fraction: float) -> None:
    """Multiply the decoder's penalty, a mean over samples, by their fraction of the batch."""
    if output.prediction is not None and output.decoder.penalty is not None:
        output.prediction.decoder = replace(output.decoder, penalty=output.decoder.penalty * fraction)


def gather_list(items: list) -> list:
    """Lists of all ranks, concatenated in rank order."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return items
    parts: list = [None] * dist.get_world_size()
    dist.all_gather_object(parts, items)
    return [item for part in parts for item in part]
