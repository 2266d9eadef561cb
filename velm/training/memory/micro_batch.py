"""`micro_batch_size`: the gradient of a whole batch with the activations of one micro-batch at a time.

    micro-batches ── towers, decoder ──> embeddings of all ──> losses of the whole batch
       ^                                                                |
       └──── each micro-batch recomputed with its activations ── gradient ┘

The first pass keeps only the embeddings of a micro-batch and its term of the captioning loss. The backward pass visits
the micro-batches one after another, recomputes each with the random state it had, and frees it. That is GradCache
(Gao et al. 2021, arXiv 2101.06983), written as `torch.utils.checkpoint`: one graph and one backward pass, so that
automatic optimisation, precision plugins, DDP and FSDP2 need no special case. It costs one more forward pass.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from velm import _compat
from velm.losses.weighted import WeightedLosses
from velm.model import VisionLanguageModel
from velm.negatives import NegativeEmbeddings
from velm.outputs import IGNORE, Batch, DecoderOutput, JointEmbeddings, VisionLanguageOutput
from velm.training.distributed.gather import Gather, drop_stand_in, weigh_penalty
from velm.training.memory.recompute import recompute_contexts

__all__ = ["micro_batch_losses", "warn_about_negatives", "warn_about_norms"]


def micro_batch_losses(
    model: VisionLanguageModel,
    losses: WeightedLosses,
    batch: Batch,
    size: int,
    gather: Gather,
    *,
    keep_activations: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum of the losses of the whole batch, float (), and each loss, {name: float ()}.

    A loss with `additive` is computed per micro-batch and summed; the others get the embeddings of the whole batch,
    and the decoder's hidden states if they require them.

    Args:
        model: computes what the losses require.
        losses: by name, with their weights.
        batch: of this rank.
        size: samples of a micro-batch; the last one may have fewer.
        gather: brings together what the ranks computed of this batch.
        keep_activations: recompute nothing; `velm selfcheck` compares with it.
    """
    named, requires = losses.named(), losses.requires
    if "decoder" in requires:
        batch = replace(batch, target_count=gather.token_count(batch.predicted() * bool(batch.samples)))
    additive = {name: loss for name, loss in named.items() if getattr(loss, "additive", False)}
    others = {name: loss for name, loss in named.items() if name not in additive}
    required_later = frozenset().union(*(loss.requires for loss in others.values()))

    def forward(micro_batch: Batch) -> tuple[VisionLanguageOutput, dict[str, Tensor]]:
        output, micro_batch = drop_stand_in(model(micro_batch, requires), micro_batch)
        weigh_penalty(output, gather.fraction(len(micro_batch)))
        return _select(output, required_later), {name: loss(output, micro_batch) for name, loss in additive.items()}

    micro_batches = batch.micro_batches(size)
    missing = -(-max(gather.rows) // size) - len(micro_batches)  # FSDP2: as many on every rank
    micro_batches += [replace(micro_batches[-1], stand_in=True)] * missing
    if keep_activations:
        results = [forward(micro_batch) for micro_batch in micro_batches]
    else:
        again = partial(checkpoint, forward, use_reentrant=False, context_fn=partial(recompute_contexts, model))
        results = [again(micro_batch) for micro_batch in micro_batches]
    group, fraction = gather.group if losses.share else None, gather.fraction(batch.samples)
    output, batch = drop_stand_in(_concatenate([output for output, _ in results]), batch)
    output, batch = gather.embeds(output, batch, share=losses.share)
    parts = {name: torch.stack([values[name] for _, values in results]).sum() for name in additive}
    parts |= losses.each(others, output, batch, group, fraction)
    return losses.weighted(parts), {name: parts[name] for name in named}


def _select(output: VisionLanguageOutput, required: frozenset[str]) -> VisionLanguageOutput:
    """The embeddings, and the hidden states if required; nothing else that holds activations."""
    selected = VisionLanguageOutput(embeddings=output.embeddings)
    if "decoder" in required and output.prediction is not None:
        decoder = DecoderOutput(output.decoder.hidden, penalty=output.decoder.penalty)
        selected.prediction = replace(output.prediction, decoder=decoder)
    return selected


def _concatenate(outputs: list[VisionLanguageOutput]) -> VisionLanguageOutput:
    """The outputs of micro-batches as one output of all their samples."""
    result = VisionLanguageOutput()
    embeddings = [output.embeddings for output in outputs if output.embeddings is not None]
    if embeddings:
        image, text = torch.cat([each.image for each in embeddings]), torch.cat([each.text for each in embeddings])
        negatives = [each.hard_negatives for each in embeddings if each.hard_negatives is not None]
        result.embeddings = JointEmbeddings(image, text, _concatenate_negatives(negatives))
    predictions = [output.prediction for output in outputs if output.prediction is not None]
    if predictions:
        longest = max(each.labels.shape[1] for each in predictions)
        decoders = [each.decoder for each in predictions]
        hidden = [F.pad(each.hidden, (0, 0, 0, longest - each.hidden.shape[1])) for each in decoders]
        penalties = [each.penalty for each in decoders if each.penalty is not None]
        decoder = DecoderOutput(torch.cat(hidden), penalty=torch.stack(penalties).sum() if penalties else None)
        labels = [F.pad(each.labels, (0, longest - each.labels.shape[1]), value=IGNORE) for each in predictions]
        result.prediction = replace(predictions[0], decoder=decoder, labels=torch.cat(labels))
    return result


def _concatenate_negatives(parts: list[NegativeEmbeddings]) -> NegativeEmbeddings | None:
    if not parts:
        return None
    return NegativeEmbeddings(torch.cat([each.text for each in parts]), torch.cat([each.valid for each in parts]))


def warn_about_negatives(losses: WeightedLosses, accumulate: int) -> None:
    """Warn that accumulated gradients do not enlarge the set of negatives.

    Args:
        losses: what is trained.
        accumulate: the Trainer's accumulate_grad_batches.
    """
    aligning = [name for name, loss in losses.named().items() if loss.aligns]
    if accumulate > 1 and aligning:
        warnings.warn(
            f"accumulate_grad_batches: {accumulate} adds up gradients, but {' and '.join(aligning)} still compares an "
            f"image with the captions of its own batch only: that is not a batch {accumulate} times as large. "
            f"For the gradient of that, in the same memory: {accumulate} times the data.batch_size, and "
            f"model.micro_batch_size at the present data.batch_size.",
            stacklevel=2,
        )


def warn_about_norms(model: nn.Module, micro_batch_size: int | None) -> None:
    """Warn that batch norm in training mode uses the statistics of a micro-batch."""
    norms = [name for name, part in model.named_modules() if _compat.is_batch_norm(part) and part.training]
    if micro_batch_size is not None and norms:
        warnings.warn(
            f"micro_batch_size: {micro_batch_size}, and batch norm in training mode ({norms[0]} and {len(norms) - 1} "
            f"more) normalises by the statistics of a micro-batch, as it would on as many devices. For the whole "
            f"batch's gradient: `norm: group`, or freeze it.",
            stacklevel=2,
        )
