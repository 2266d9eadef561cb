"""The whole batch on every device: what makes the loss of many processes the loss of one."""

from __future__ import annotations

from dataclasses import replace

import lightning
import torch
from torch import Tensor
from torch import distributed as dist

from velm.outputs import IGNORE, Batch, VisionLanguageOutput


def gather_global(
    module: lightning.LightningModule, output: VisionLanguageOutput, batch: Batch, *, share: bool = False
) -> tuple[VisionLanguageOutput, Batch]:
    """Embeddings and image ids of every device, with gradient; and the token count that makes means global.

    The gradient is the whole batch's: every rank computes the same loss of the gathered embeddings, the gather's
    backward sums the ranks' gradients, and DDP's mean divides by the number of ranks again. A mean over tokens
    becomes global when each rank divides its sum by the mean of the ranks' counts.

    Args:
        module: with the trainer that knows the devices.
        output: this rank's.
        batch: this rank's.
        share: the losses meet the other ranks' embeddings by themselves: they are told the group instead.
    """
    if output.labels is not None and module.trainer.world_size > 1:
        batch = replace(batch, target_count=global_count(module, (output.labels != IGNORE).sum()))
    return gather_embeds(module, output, batch, share=share)


def gather_embeds(
    module: lightning.LightningModule, output: VisionLanguageOutput, batch: Batch, *, share: bool = False
) -> tuple[VisionLanguageOutput, Batch]:
    """The part of `gather_global` that concerns embeddings, where there are any."""
    if module.trainer.world_size == 1 or output.image_embeds is None or output.text_embeds is None:
        return output, batch
    if share:
        return output, replace(batch, group=dist.group.WORLD)
    ids = module.all_gather(batch.image_ids)
    assert isinstance(ids, Tensor)
    image_embeds, text_embeds = _gather(module, output.image_embeds), _gather(module, output.text_embeds)
    output = replace(output, image_embeds=image_embeds, text_embeds=text_embeds)
    return output, replace(batch, image_ids=ids.flatten(0, 1))


def global_count(module: lightning.LightningModule, count: Tensor) -> Tensor:
    """The mean over the devices of how many tokens each predicts, float (); one sum divided by it is a global mean."""
    count = count.float()
    if module.trainer.world_size == 1:
        return count.clamp(min=1)
    dist.all_reduce(count)
    return count / module.trainer.world_size


def _gather(module: lightning.LightningModule, embeds: Tensor) -> Tensor:
    gathered = module.all_gather(embeds, sync_grads=True)
    assert isinstance(gathered, Tensor)
    return gathered.flatten(0, 1)


def gather_rows(rows: Tensor) -> Tensor:
    """Rows of all ranks, one after another; ranks may hold different numbers of them. No gradient."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return rows
    parts: list[Tensor | None] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, rows.cpu())
    return torch.cat([part for part in parts if part is not None]).to(rows.device)


def gather_list(items: list) -> list:
    """Lists of all ranks, one after another."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return items
    parts: list[list | None] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, items)
    return [item for part in parts if part is not None for item in part]
