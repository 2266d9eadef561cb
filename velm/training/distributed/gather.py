"""Gathers embeddings, image ids and token counts over the ranks, so that the loss of many processes is that of one."""

from __future__ import annotations

from dataclasses import replace

import lightning
from torch import Tensor
from torch import distributed as dist

from velm.outputs import IGNORE, Batch, JointEmbeddings, VisionLanguageOutput

__all__ = ["Gather", "gather_list"]


class Gather:
    """Turns one rank's output and batch into those of all ranks; on one rank it changes nothing.

    The gradient is the whole batch's: every rank computes the same loss of the gathered embeddings, the gather's
    backward sums the ranks' gradients, and DDP's mean divides by the number of ranks again. A mean over tokens
    becomes global when each rank divides its sum by the mean of the ranks' counts.

    Args:
        module: attached to the trainer that knows the ranks.
    """

    def __init__(self, module: lightning.LightningModule) -> None:
        self.module, self.world_size = module, module.trainer.world_size

    @property
    def group(self) -> dist.ProcessGroup | None:
        """The process group of all ranks, for losses that share the work; None on one rank."""
        return dist.group.WORLD if self.world_size > 1 else None

    def all(
        self, output: VisionLanguageOutput, batch: Batch, *, share: bool = False
    ) -> tuple[VisionLanguageOutput, Batch]:
        """Embeddings and image ids of every rank, with gradient, and the token count that makes means global.

        Args:
            output: this rank's.
            batch: this rank's.
            share: the losses exchange embeddings themselves, given `group`: embeddings and ids stay this rank's.
        """
        if output.prediction is not None and self.world_size > 1:
            batch = replace(batch, target_count=self.token_count((output.labels != IGNORE).sum()))
        return self.embeds(output, batch, share=share)

    def embeds(
        self, output: VisionLanguageOutput, batch: Batch, *, share: bool = False
    ) -> tuple[VisionLanguageOutput, Batch]:
        """The part of `all` that concerns embeddings; unchanged where the output has none."""
        if self.world_size == 1 or share or output.embeddings is None:
            return output, batch
        ids = self.module.all_gather(batch.image_ids)
        assert isinstance(ids, Tensor)
        image, text = (_gather(self.module, each) for each in (output.image_embeds, output.text_embeds))
        output = replace(output, embeddings=JointEmbeddings(image, text))
        return output, replace(batch, image_ids=ids.flatten(0, 1))

    def token_count(self, count: Tensor) -> Tensor:
        """The mean over the ranks of how many tokens each predicts, float (); a sum divided by it is a global mean."""
        count = count.float()
        if self.world_size == 1:
            return count.clamp(min=1)
        dist.all_reduce(count)
        return count / self.world_size


def _gather(module: lightning.LightningModule, embeds: Tensor) -> Tensor:
    gathered = module.all_gather(embeds, sync_grads=True)
    assert isinstance(gathered, Tensor)
    return gathered.flatten(0, 1)


def gather_list(items: list) -> list:
    """Lists of all ranks, concatenated in rank order."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return items
    parts: list = [None] * dist.get_world_size()
    dist.all_gather_object(parts, items)
    return [item for part in parts for item in part]
