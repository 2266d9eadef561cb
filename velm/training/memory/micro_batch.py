"""`micro_batch_size`: the gradient of a whole batch with the activations of a piece of it.

    pieces ── towers, decoder ──> embeddings of all ──> losses of the whole batch
       ^                                                        |
       └──── each piece again, its activations kept ── gradient ┘

The first pass keeps nothing of a piece but its embeddings and its share of the captioning loss. The backward pass comes
to the pieces one after another, computes each again, with the random state it had, and lets go of it. That is what
GradCache does (Gao et al. 2021, arXiv 2101.06983), here as `torch.utils.checkpoint`: one graph and one backward pass,
so that automatic optimisation, precision plugins, DDP and FSDP2 see nothing unusual. It costs one more forward pass.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from velm.outputs import EMBEDS, IGNORE, Batch, DecoderOutput, VisionLanguageOutput
from velm.training.distributed.gather import gather_embeds, global_count
from velm.training.memory.statistics import first_pass_only

if TYPE_CHECKING:
    from velm.training.task import VisionLanguageTask

__all__ = ["losses_in_pieces", "warn_of_pieces"]


def losses_in_pieces(
    task: VisionLanguageTask, batch: Batch, size: int, *, keep: bool = False
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum of the losses of the whole batch, and each of them.

    Losses that say they are `additive` are computed piece by piece; the others get the embeddings, and the decoder's
    hidden states where they ask for them, of the whole batch.

    Args:
        task: whose model and losses.
        batch: B samples of this device.
        size: samples of a piece, the last one may have fewer.
        keep: keep the activations of every piece, and compute none twice: what `velm selfcheck` compares with.
    """
    losses, samples = task.losses.named(), len(batch)
    if "decoder" in task.needs:
        batch = replace(batch, target_count=global_count(task, batch.predicted()))
    apart = {name: loss for name, loss in losses.items() if getattr(loss, "additive", False)}
    whole = {name: loss for name, loss in losses.items() if name not in apart}
    wanted = frozenset().union(*(loss.requires for loss in whole.values()))

    def run(piece: Batch) -> tuple[VisionLanguageOutput, dict[str, Tensor]]:
        output = task.model(piece, task.needs)
        if output.decoder is not None and output.decoder.penalty is not None:  # a mean over samples
            share = len(piece) / samples
            output.decoder = replace(output.decoder, penalty=output.decoder.penalty * share)
        return _kept(output, wanted), {name: loss(output, piece) for name, loss in apart.items()}

    contexts = partial(first_pass_only, task.model)
    pieces = batch.pieces(size)
    if keep:
        done = [run(piece) for piece in pieces]
    else:
        done = [checkpoint(run, piece, use_reentrant=False, context_fn=contexts) for piece in pieces]
    output, batch = gather_embeds(task, _joined([output for output, _ in done]), batch, share=task.losses.share)
    output.output_projection = getattr(task.model.decoder, "output_projection", None)
    parts = {name: torch.stack([values[name] for _, values in done]).sum() for name in apart}
    parts |= {name: loss(output, batch) for name, loss in whole.items()}
    return task.losses.weighted(parts), {name: parts[name] for name in losses}


def _kept(output: VisionLanguageOutput, wanted: frozenset[str]) -> VisionLanguageOutput:
    """What the losses of the whole batch ask for, and nothing that holds activations besides."""
    kept = VisionLanguageOutput(image_embeds=output.image_embeds, text_embeds=output.text_embeds)
    if "decoder" in wanted and output.decoder is not None:
        kept.decoder = DecoderOutput(output.decoder.hidden, penalty=output.decoder.penalty)
        kept.labels = output.labels
    return kept


def _joined(outputs: list[VisionLanguageOutput]) -> VisionLanguageOutput:
    """The outputs of pieces as one of all their samples."""
    joined = VisionLanguageOutput()
    for name in ("image_embeds", "text_embeds"):
        embeds = [getattr(output, name) for output in outputs]
        setattr(joined, name, None if embeds[0] is None else torch.cat(embeds))
    decoders = [output.decoder for output in outputs if output.decoder is not None]
    labels = [output.labels for output in outputs if output.labels is not None]
    if decoders:
        longest = max(part.shape[1] for part in labels)
        hidden = [F.pad(part.hidden, (0, 0, 0, longest - part.hidden.shape[1])) for part in decoders]
        penalties = [part.penalty for part in decoders if part.penalty is not None]
        joined.decoder = DecoderOutput(torch.cat(hidden), penalty=torch.stack(penalties).sum() if penalties else None)
        joined.labels = torch.cat([F.pad(part, (0, longest - part.shape[1]), value=IGNORE) for part in labels])
    return joined


def warn_of_pieces(task: VisionLanguageTask, accumulate: int) -> None:
    """Say what cutting a batch changes: the negatives of accumulated steps, the statistics of batch norm.

    Args:
        accumulate: the Trainer's accumulate_grad_batches.
    """
    meeting = [name for name, loss in task.losses.named().items() if loss.requires >= EMBEDS]
    if accumulate > 1 and meeting:
        warnings.warn(
            f"accumulate_grad_batches: {accumulate} adds up gradients, but {' and '.join(meeting)} still compares a "
            f"image with the sentences of its own batch only: that is not a batch {accumulate} times as large. "
            f"For the gradient of that, in the same memory: {accumulate} times the data.batch_size, and "
            f"model.micro_batch_size at the present data.batch_size.",
            stacklevel=2,
        )
    norms = [name for name, part in task.model.named_modules() if isinstance(part, _BatchNorm) and part.training]
    if task.micro_batch_size is not None and norms:
        warnings.warn(
            f"micro_batch_size: {task.micro_batch_size}, and batch norm in training mode ({norms[0]} and "
            f"{len(norms) - 1} more) normalises by the statistics of a piece, as it would on as many devices. For the "
            f"whole batch's gradient: `norm: group`, or freeze it.",
            stacklevel=2,
        )
