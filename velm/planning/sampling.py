"""The captions that the loss `scst` samples in a step: the batch they make, and the memory and FLOPs of sampling.

probe ── with_samples ──> K rows an image ── sample ──> features, if the encoder is frozen ──> forward, backward
                                              └── bytes and FLOPs of the longest captions, without gradient
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from velm import _compat
from velm.generation import Constraints, GenerationConfig
from velm.generation.search import Search
from velm.losses.self_critical import SelfCriticalLoss
from velm.losses.weighted import WeightedLosses
from velm.outputs import Batch, EncodedImages, SampledCaptions
from velm.planning.counting import counting
from velm.training.memory.feature_cache import is_frozen
from velm.training.self_critical import split_losses
from velm.training.task import VisionLanguageTask
from velm.util import evaluating

__all__ = ["Sampling", "passes_of", "sample", "with_samples"]


@dataclass(frozen=True)
class Sampling:
    """What sampling leaves and costs.

    Attributes:
        batch: of the forward pass; its images are encoded if the image encoder is frozen.
        features: tensors that are held from sampling to the end of the step.
        bytes: at the peak, without `features`.
        flops: of all tokens.
    """

    batch: Batch
    features: tuple[Tensor, ...] = ()
    bytes: int = 0
    flops: int = 0


def with_samples(task: VisionLanguageTask, batch: Batch) -> Batch:
    """The batch of a probe with the loss's sampled captions, as long as its texts; as it is without such a loss."""
    loss, decoder = _loss_of(task), task.model.decoder
    if loss is None or decoder is None or batch.tokens is None:
        return batch
    images = len(batch) // batch.sharing
    rows = torch.arange(images).repeat_interleave(loss.samples)
    limit = min(batch.tokens.shape[1], decoder.max_length or batch.tokens.shape[1])
    tokens = batch.tokens[:1, :limit].expand(len(rows), limit).clone()
    factors = torch.ones(len(rows)) / len(rows)
    return Batch(
        images=batch.images, tokens=tokens, mask=torch.ones_like(tokens, dtype=torch.bool), image_ids=rows,
        image_rows=rows, sharing=loss.samples, sampled=SampledCaptions(factors, (task.model.pad_id,)),
    )  # fmt: skip


def passes_of(task: VisionLanguageTask, sampling: Sampling, own: Batch) -> list[tuple[Batch, WeightedLosses]]:
    """The batches of a step's forward passes, and the losses of each; `own` is that of the data's captions."""
    of_samples, of_data = split_losses(task.losses)
    if not of_samples:
        return [(own, task.losses)]
    own = replace(own, images=sampling.batch.images, encoded=sampling.batch.encoded)
    return [(sampling.batch, of_samples), *([(own, of_data)] if of_data else [])]


def sample(task: VisionLanguageTask, batch: Batch, precision: str, fake: bool) -> Sampling:
    """Sample as `velm.training.self_critical.SelfCritic` does, captions of the greatest length.

    Args:
        batch: of `with_samples`.
        precision, fake: as of `counting`.
    """
    loss, model, decoder = _loss_of(task), task.model, task.model.decoder
    if loss is None or decoder is None or batch.tokens is None:
        return Sampling(batch)
    frozen = is_frozen(model.image_encoder)
    length = batch.tokens.shape[1] - 1  # without bos
    configs = [GenerationConfig(max_length=length, temperature=loss.temperature, num_return=loss.samples)]
    if loss.baseline == "greedy":
        configs.append(GenerationConfig(max_length=length))
    with counting(task, [batch], precision, fake) as (peak, flops), _no_gradients(model), evaluating(model):
        images = model.encode_images_of(batch)
        memory, mask = model.memory(images, None)
        for config in configs:
            eos = (model.pad_id + 1) % decoder.output_projection.out_features  # any: no caption ends
            rules = Constraints(config, decoder, eos_id=eos, suppress=(model.pad_id,), device=memory.device)
            search = Search(decoder, rules, eos, memory.device)
            with _compat.without_fake_mode() if fake else nullcontext():  # rows of a state are values
                state = search.start(memory, mask)
            search.rollout(state, len(memory) * search.copies)
            del state
    if not frozen or images is None:
        return Sampling(batch, (), peak.peak, flops.get_total_flops())
    features = (images.features, images.pooled)
    size = sum(tensor.numel() * tensor.element_size() for tensor in features)
    encoded = replace(batch, images=None, encoded=EncodedImages.of(images))
    return Sampling(encoded, features, peak.peak - size, flops.get_total_flops())


@contextmanager
def _no_gradients(module: nn.Module) -> Iterator[None]:
    """`torch.no_grad`, in which torch's FlopCounterMode fails on views of parameters that require a gradient."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    try:
        module.requires_grad_(False)
        with torch.no_grad():
            yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def _loss_of(task: VisionLanguageTask) -> SelfCriticalLoss | None:
    return next((loss for loss in task.losses.values() if isinstance(loss, SelfCriticalLoss)), None)
